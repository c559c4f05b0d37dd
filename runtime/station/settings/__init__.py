"""station.json: what a station judges with, where its frames come from, and where results go."""
