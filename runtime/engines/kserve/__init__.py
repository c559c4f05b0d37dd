"""The engine that sends images to a server of the KServe v2 (open inference) protocol."""
