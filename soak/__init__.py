"""Real processes and servers under a nemesis for as long as you like, and a judge of what they have done."""
