"""Networks: built, loaded, wrapped; their cards and what they are made of."""
