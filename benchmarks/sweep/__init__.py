"""The sweep: trains and measures methods x backbones x data sets x seeds x engines."""
