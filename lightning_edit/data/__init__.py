"""Benchmarks as edit records, and the data module that feeds them to a Trainer."""

from lightning_edit.data.akew import AKEW
from lightning_edit.data.corpus import TextCorpus
from lightning_edit.data.counterfact import CounterFact
from lightning_edit.data.datamodule import EditDataModule
from lightning_edit.data.facts import Facts, read_requests
from lightning_edit.data.hallu_edit_bench import HalluEditBench
from lightning_edit.data.knowedit import ConvSent, KnowEditZsRE, Sanitation, WikiBio, WikiCounterfact, WikiRecent
from lightning_edit.data.mixture import Mixture
from lightning_edit.data.mquake import MQuAKE
from lightning_edit.data.read_report import ReadReport
from lightning_edit.data.reading import Benchmark, RecordSource
from lightning_edit.data.ripple_edits import RippleEdits
from lightning_edit.data.unke import UnKE
from lightning_edit.data.wiki_big_edit import WikiBigEdit
from lightning_edit.data.worldfacts import WorldFacts
from lightning_edit.data.zsre import ZsRE

__all__ = [
    "AKEW",
    "Benchmark",
    "ConvSent",
    "CounterFact",
    "EditDataModule",
    "Facts",
    "HalluEditBench",
    "KnowEditZsRE",
    "MQuAKE",
    "Mixture",
    "ReadReport",
    "RecordSource",
    "RippleEdits",
    "Sanitation",
    "TextCorpus",
    "UnKE",
    "WikiBigEdit",
    "WikiBio",
    "WikiCounterfact",
    "WikiRecent",
    "WorldFacts",
    "ZsRE",
    "read_requests",
]
