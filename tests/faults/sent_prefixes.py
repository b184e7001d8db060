"""A prefix of a tiny model, sent as one file and taken in."""

from normal_layers import normal_layers

from llm_mlx_promptcache.cache.disk.store import DiskStore
from llm_mlx_promptcache.cache.exchange import Prefix, export_prefix, import_prefix, open_prefix
from llm_mlx_promptcache.cache.prompt_cache import PromptCache

TOKENS = list(range(500, 620))
ABOUT = {"model files": "a digest"}


def layers_of(dtype):
    return normal_layers(len(TOKENS), 64, dtype)


def arrays_of(layer):
    return [array[..., : len(TOKENS), :] for array in (layer.keys, layer.values)]


def exported(file, dtype):
    cache = PromptCache("1GB")
    cache.insert("m", TOKENS, layers_of(dtype))
    export_prefix(cache, Prefix("m", TOKENS, ABOUT), file)
    return file.read_bytes()


def taken(file, folder, files=None):
    """Take a file in; returns the number of tokens that are kept."""
    store = DiskStore(folder, files=files)
    with open_prefix(file) as found:
        return import_prefix(PromptCache("1GB", store), found, "m", ABOUT)
