"""Two strategies that ask most of a backbone, on every built-in one: mixed blocks, and patches at sites."""

from finetune_kit.testing import StrategyContract
from ftkit_backbones.attention import AttentionOptions
from ftkit_backbones.bert4rec import Bert4Rec
from ftkit_backbones.gru4rec import Gru4Rec, Gru4RecOptions
from ftkit_backbones.hugging_face import HuggingFace, HuggingFaceOptions
from ftkit_backbones.sasrec import SasRec


class SmallSasRec(SasRec):
    def __init__(self, num_items: int, max_length: int) -> None:
        super().__init__(num_items, max_length, AttentionOptions(dim=8, num_blocks=2))


class SmallGru4Rec(Gru4Rec):
    def __init__(self, num_items: int, max_length: int) -> None:
        super().__init__(num_items, max_length, Gru4RecOptions(dim=8, num_blocks=2, dropout=0.2))


class SmallBert4Rec(Bert4Rec):
    def __init__(self, num_items: int, max_length: int) -> None:
        super().__init__(num_items, max_length, AttentionOptions(dim=8, num_blocks=2))


class SmallGpt2(HuggingFace):
    def __init__(self, num_items: int, max_length: int) -> None:
        super().__init__(num_items, max_length, HuggingFaceOptions(dim=8, num_blocks=2))


BACKBONES = [SmallSasRec, SmallGru4Rec, SmallBert4Rec, SmallGpt2]


class TestUafHard(StrategyContract):
    strategy = "uaf-hard"
    backbones = BACKBONES


class TestPeterRec(StrategyContract):
    strategy = "peterrec"
    backbones = BACKBONES
