"""`python -m finetune_kit` is `ftkit`; `torchrun -m finetune_kit …` trains in several processes."""

from finetune_kit.cli.main import main

if __name__ == "__main__":
    main()
