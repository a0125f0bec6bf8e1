"""What every room stands on: errors, files, locks, the store, secrets, schema, numbers."""
