"""An order: its rows in one database, what it takes in another, and the customer's money outside."""
