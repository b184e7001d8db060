"""`python -P -m llm_mlx_promptcache.host`, which the first front end that finds no host starts."""

import sys

from .main import main

sys.exit(main())
