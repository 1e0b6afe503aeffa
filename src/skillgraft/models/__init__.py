"""Models: loading, precision, prompts and answers, shared by training, evaluation, synthesis and chat."""
