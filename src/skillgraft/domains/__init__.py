"""What is to be learnt: documents and questions in, prompts and rewards out."""
