"""The protocol as models, and Spin, which searches everything they can do. See README.md."""
