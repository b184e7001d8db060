"""llm on one side, the engine on the other: models, options, messages and answers."""
