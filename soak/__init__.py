"""Hours of real processes and servers under a nemesis, and a judge of what they have done; README.md tells how to run it."""
