"""One function per training stage, on Transformers, TRL and PEFT."""
