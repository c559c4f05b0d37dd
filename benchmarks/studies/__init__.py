"""Single measurements, one command each."""
