"""A station as a service of systemd: its station file, its unit, and how they are installed."""
