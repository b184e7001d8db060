"""`python -P -m llm_mlx_promptcache.host`, run by the first front end that finds no host."""

import sys

from .main import main

sys.exit(main())
