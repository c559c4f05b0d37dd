"""Ed25519 signatures of bundles: keys, signature.json, and who is trusted."""
