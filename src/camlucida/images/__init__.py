"""Pictures: where they come from, how they are read, which view a network gets, and data sets of them."""
