"""Writing a finished run as one file that serves without finetune-kit, and checking that it computes the same."""
