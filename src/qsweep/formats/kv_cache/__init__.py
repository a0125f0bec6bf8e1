"""What keys and values are stored as while a model serves: types, a trial's choice, arithmetic."""
