"""Pre-training on the source domain, fine-tuning on the target domain, and the loop they share."""
