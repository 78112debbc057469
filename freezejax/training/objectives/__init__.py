"""What a run minimizes and what it reports: the interface, and one file per objective."""
