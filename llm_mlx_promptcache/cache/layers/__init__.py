"""What a model's layers hold: the kinds of layer, spans cut out of them, put together again."""
