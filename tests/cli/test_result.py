from finetune_kit.cli.result import gates_text

GATES = {"mean": [1.0, 0.25], "probability": [0.9, 0.3], "users": 4, "distinct": 2}


def test_what_a_policy_does_is_told_in_lines() -> None:
    assert gates_text(GATES).splitlines() == [
        "mean gate per block (1 fine-tuned, 0 frozen): 1.00 0.25",
        "the policy's mean probability of fine-tuning: 0.90 0.30",
        "different choices among 4 users: 2",
    ]


def test_where_blocks_are_skipped_it_is_told_how_many_are_computed() -> None:
    assert gates_text({**GATES, "skipped": [0.0, 0.5]}).splitlines() == [
        "mean gate per block (1 fine-tuned, 0 frozen or skipped): 1.00 0.25",
        "the policy's mean probability of fine-tuning: 0.90 0.30",
        "share of users who skip a block: 0.00 0.50",
        "blocks computed per user: 1.50 of 2",
        "different choices among 4 users: 2",
    ]
