"""`python -P -m llm_mlx_promptcache.machines`: a rank, which rank 0 starts here or over ssh."""

import sys

from .rank_main import main

sys.exit(main())
