"""What a model can do: on the development split while it trains, and on any text."""
