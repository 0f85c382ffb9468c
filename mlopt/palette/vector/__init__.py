"""Vector clustering: tables whose entries span several channels."""
