from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from finetune_kit import losses
from finetune_kit.backbone import Backbone
from finetune_kit.data.batch import Windows
from finetune_kit.errors import DataError, PluginError
from finetune_kit.testing import GlobalBackbone, TinyBackbone, random_sequence, randomise
from finetune_kit.training.device import make_fabric
from finetune_kit.training.pretrain import Lottery, NextItem, hold_out
from finetune_kit.training.stages import Pretraining


def windows(num_windows: int = 6, length: int = 8, num_items: int = 20, seed: int = 0) -> Windows:
    sequence = random_sequence(num_windows, length + 1, num_items, seed)
    inputs = sequence[:, :-1]
    return Windows(inputs.contiguous(), torch.where(inputs == 0, 0, sequence[:, 1:]))


def model(num_items: int = 20, num_negatives: int = 0, share: torch.Tensor | None = None) -> NextItem:
    torch.manual_seed(0)
    return NextItem(randomise(TinyBackbone(num_items, 8)), share, num_negatives)


def plain_loss(model: NextItem, batch: Windows) -> torch.Tensor:
    logits = model.output(model.backbone(batch.inputs))  # (windows, length, items)
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten() - 1, ignore_index=-1)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_the_exact_loss_and_its_gradients_are_those_of_cross_entropy(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    one, batch = model(), windows()
    found, expected = one(batch), plain_loss(one, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    parameters = list(one.parameters())
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_exact_loss_works_where_chunks_cannot_pay() -> None:
    few_items = model(num_items=5)
    batch = windows(num_items=5)
    torch.testing.assert_close(few_items(batch), plain_loss(few_items, batch), atol=1e-6, rtol=1e-5)
    few_positions = Windows(torch.tensor([[0, 0, 3]]), torch.tensor([[0, 0, 4]]))
    one = model()
    torch.testing.assert_close(one(few_positions), plain_loss(one, few_positions), atol=1e-6, rtol=1e-5)


def test_the_exact_loss_by_hand() -> None:
    one = model(num_items=4)
    one.output.weight.data.zero_()
    one.output.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0]).log()
    batch = Windows(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 4]]))
    assert one(batch).item() == pytest.approx(-(torch.tensor([0.2, 0.4]).log().mean().item()))


def test_padding_is_neither_scored_nor_a_label() -> None:
    one = model()
    assert one.output.out_features == 20  # no row for padding
    short = Windows(torch.tensor([[5, 6, 7]]), torch.tensor([[6, 7, 8]]))
    padded = Windows(torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 6, 7, 8]]))
    torch.testing.assert_close(one(padded), one(short), atol=1e-6, rtol=1e-5)
    one(padded).backward()
    assert one.backbone.item_embedding.weight.grad is not None
    assert not one.backbone.item_embedding.weight.grad[0].any()


def test_the_sampled_softmax_by_a_slow_loop() -> None:
    share = torch.arange(1.0, 21.0)
    one, batch = model(num_negatives=7, share=share).train(), windows(2)
    one.start_epoch(3)
    found = one(batch)
    one.start_epoch(3)
    drawn = Lottery(share).draw(7, one._noise)[0].tolist()
    logits, q = one.output(one.backbone(batch.inputs)), share / share.sum()
    losses = []
    for row, label in zip(logits.flatten(0, 1), (batch.labels.flatten() - 1).tolist(), strict=True):
        if label >= 0:
            partition = row[label].exp() + sum(row[item].exp() / (7 * q[item]) for item in drawn if item != label)
            losses.append(partition.log() - row[label])
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_with_many_draws_the_sampled_softmax_is_the_exact_one() -> None:
    one, batch = model(num_negatives=300_000, share=torch.linspace(1, 5, 20)).train(), windows(2, seed=1)
    sampled, exact = one.sampled_loss(batch), one.exact_loss(batch)
    assert sampled.item() == pytest.approx(exact.item(), abs=0.01)
    parameters = [one.output.weight, one.output.bias]
    for a, b in zip(torch.autograd.grad(sampled, parameters), torch.autograd.grad(exact, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=0.01, rtol=0)


@torch.no_grad()
def test_with_few_draws_the_sampled_softmax_has_the_exact_partition_sum_on_average() -> None:
    one, batch = model(num_negatives=4, share=torch.linspace(1, 5, 20)).train(), windows(1, seed=2)
    last = Windows(batch.inputs, torch.where(torch.arange(8) == 7, batch.labels, 0))  # one position
    inverse_shares = torch.tensor([one.sampled_loss(last).exp().item() for _ in range(500)])
    error = inverse_shares.std() / 500**0.5
    assert inverse_shares.mean().item() == pytest.approx(one.exact_loss(last).exp().item(), abs=4 * error.item())


def test_items_are_drawn_as_often_as_they_are_frequent_and_those_that_never_occur_are_not() -> None:
    frequency, num_draws = torch.tensor([0.0, 1, 0, 0, 6, 3, 0]), 100_000
    drawn, log_share = Lottery(frequency).draw(num_draws, torch.Generator().manual_seed(0))
    share = frequency / 10
    error = (share * (1 - share) / num_draws).sqrt()
    assert ((drawn.bincount(minlength=7) / num_draws - share).abs() <= 4 * error).all()
    torch.testing.assert_close(log_share.exp(), share[drawn])


def test_one_generator_draws_the_same_items_again_and_others_next() -> None:
    lottery, random = Lottery(torch.ones(1000)), torch.Generator().manual_seed(0)
    first, second = (lottery.draw(20, random)[0] for _ in range(2))
    assert torch.equal(first, lottery.draw(20, torch.Generator().manual_seed(0))[0])
    assert not torch.equal(first, second)


def test_items_are_drawn_from_more_than_multinomial_takes() -> None:
    frequency = torch.zeros(2**24 + 10)
    frequency[-3:] = torch.tensor([1.0, 2, 0])
    drawn, _ = Lottery(frequency).draw(50, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {2**24 + 7, 2**24 + 8}


def test_the_drawn_items_are_a_function_of_the_epoch() -> None:
    one, batch = model(num_negatives=3, share=torch.ones(20)).train(), windows()
    losses = []
    for epoch in (1, 2, 1):
        one.start_epoch(epoch)
        losses.append(one(batch).item())
    assert losses[0] == losses[2] != losses[1]


def test_in_evaluation_the_loss_is_exact_however_it_trains() -> None:
    one, batch = model(num_negatives=3, share=torch.ones(20)).eval(), windows()
    torch.testing.assert_close(one(batch), plain_loss(one, batch), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_negatives", [0, 10])
def test_it_learns_which_item_follows(num_negatives: int) -> None:
    one = model(num_negatives=num_negatives, share=torch.ones(20)).train()
    start = torch.arange(1, 13).unsqueeze(1)
    sequence = (start + torch.arange(9) * 3) % 20 + 1  # each item is followed by the third next
    batch = Windows(sequence[:, :-1].contiguous(), sequence[:, 1:].contiguous())
    optimizer = torch.optim.Adam(one.parameters(), 0.02)
    for _ in range(60):
        one(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    guess = one.output(one.backbone(batch.inputs)).argmax(-1) + 1
    assert (guess == batch.labels).float().mean() > 0.9


def test_held_out_users_are_a_share_of_those_with_two_events() -> None:
    class Lengths:
        source_lengths = torch.tensor([1, 5, 2, 0, *[3] * 38]).numpy()

    parts = hold_out(Lengths(), 0.25, seed=0)
    assert sorted([*parts.train, *parts.valid]) == [2, 3, *range(5, 43)]
    assert len(parts.valid) == 10
    assert not (hold_out(Lengths(), 0.25, seed=1).valid == parts.valid).all()
    assert len(hold_out(Lengths(), 0.001, seed=0).valid) == 1
    assert len(hold_out(Lengths(), 0.999, seed=0).train) == 1


@pytest.mark.parametrize("lengths", [[1, 1, 0], [1, 2, 1]])
def test_too_few_users_with_two_events_are_refused(lengths: list[int]) -> None:
    class Lengths:
        source_lengths = torch.tensor(lengths).numpy()

    with pytest.raises(DataError, match="learning the source domain needs at least 2 such users"):
        hold_out(Lengths(), 0.1, seed=0)


def test_a_causal_backbone_learns_from_the_windows_as_they_are() -> None:
    batch = windows()
    assert TinyBackbone(20, 8).source_task(batch, None) is batch


def test_a_backbone_that_is_not_causal_guesses_hidden_items_that_it_cannot_see() -> None:
    batch, noise = windows(200), torch.Generator().manual_seed(0)
    found = GlobalBackbone(20, 8).source_task(batch, noise)
    is_hidden = found.inputs == 21
    assert torch.equal(is_hidden, found.labels != 0)
    assert torch.equal(torch.where(is_hidden, found.labels, found.inputs), batch.labels)
    assert (is_hidden.any(dim=1) == (batch.labels != 0).any(dim=1)).all()
    assert 0.15 < is_hidden.sum() / (batch.labels != 0).sum() < 0.35


def test_in_evaluation_the_last_item_is_hidden_and_no_other() -> None:
    batch = windows()
    found = GlobalBackbone(20, 8).source_task(batch, None)
    assert (found.inputs[:, -1] == 21).all()
    assert torch.equal(found.inputs[:, :-1], batch.labels[:, :-1])
    assert torch.equal(found.labels[:, -1], batch.labels[:, -1])
    assert not found.labels[:, :-1].any()


def test_a_hidden_item_does_not_leak_into_its_own_state() -> None:
    backbone = randomise(GlobalBackbone(20, 8))
    one = Windows(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))
    other = Windows(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 5]]))
    first, second = (backbone(backbone.source_task(batch, None).inputs) for batch in (one, other))
    assert torch.equal(first, second)


def test_a_backbone_that_sees_later_items_and_has_no_mask_vector_is_refused() -> None:
    backbone = GlobalBackbone(20, 8)
    backbone.mask_vector = None
    with pytest.raises(PluginError, match="GlobalBackbone sees later items"):
        backbone.source_task(windows(), None)


def test_pretraining_draws_the_hidden_items_of_an_epoch_anew_and_again() -> None:
    torch.manual_seed(0)
    one = NextItem(randomise(GlobalBackbone(20, 8))).train()
    losses = []
    for epoch in (1, 2, 1):
        one.start_epoch(epoch)
        losses.append(one(windows()).item())
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("kind", [TinyBackbone, GlobalBackbone])
def test_the_held_out_loss_is_that_of_what_a_backbone_guesses(kind: type[Backbone], tmp_path: Path) -> None:
    one = NextItem(randomise(kind(20, 8)))
    batches = [windows(5), windows(3, seed=1)]
    experiment: Any = SimpleNamespace(fabric=make_fabric("cpu"))
    valid: Any = SimpleNamespace(epoch=lambda: batches)
    found = Pretraining(experiment, tmp_path)._held_out_loss(one, valid)
    asked = [batch if kind.is_causal else batch.hide(21, 0.2, None) for batch in batches]
    whole = Windows(torch.cat([batch.inputs for batch in asked]), torch.cat([batch.labels for batch in asked]))
    assert found == pytest.approx(plain_loss(one.eval(), whole).item(), rel=1e-5)
