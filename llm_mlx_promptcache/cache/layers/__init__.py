"""The content of a model's layers: kinds of layer, spans cut out of them and put together."""
