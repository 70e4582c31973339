"""Several data sets read as one."""

from collections import Counter

import pytest

from lightning_edit.data import EditDataModule, Mixture, ReadReport, RecordSource, WorldFacts
from lightning_edit.errors import ConfigurationError
from lightning_edit.records import EditRecord, EditRequest


class Numbered(RecordSource):
    def __init__(self, count, city, dropped=0):
        self.count, self.city, self.dropped = count, city, dropped

    def read(self):
        report = ReadReport(
            origin=f"{self.city}s", dropped=Counter({"no answer": self.dropped} if self.dropped else {})
        )
        report.records = [
            EditRecord(str(number), (EditRequest(f"House {number} is in", self.city, id=str(number)),))
            for number in range(self.count)
        ]
        return report


class Others(Numbered):
    pass


def test_records_of_all_sources_with_their_counts():
    report = Mixture([Numbered(3, "Rome", 2), Others(2, "Oslo", 1)]).read()
    assert [record.requests[0].target for record in report.records] == ["Rome"] * 3 + ["Oslo"] * 2
    assert [record.id for record in report.records] == ["0", "1", "2", "0#2", "1#2"]
    assert [record.requests[0].id for record in report.records] == ["0", "1", "2", "0#2", "1#2"]
    assert report.dropped == {"Numbered: no answer": 2, "Others: no answer": 1}
    assert report.noted == {"prompts shared by several requests": 2, "prompts with conflicting targets": 2}
    assert report.origin == "3 of Romes + 2 of Oslos"


def test_counts_of_two_sources_of_one_class_add_up():
    report = Mixture([Numbered(1, "Rome", 2), Numbered(1, "Oslo", 3)]).read()
    assert report.dropped == {"Numbered: no answer": 5}


def test_sizes_are_drawn_without_replacement_and_depend_on_the_seed():
    sources = [Numbered(50, "Rome"), Others(4, "Oslo")]
    drawn = [Mixture(sources, [10, None], seed).read().records for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    numbers = [int(record.requests[0].prompt.split()[1]) for record in drawn[0]]
    assert len(drawn[0]) == 14
    assert numbers[:10] == sorted(set(numbers[:10]))
    assert numbers[10:] == [0, 1, 2, 3]
    limited = Mixture(sources, [10, None], limit=6).read().records
    assert len(limited) == 6
    assert [record.id for record in limited] == [record.id for record in drawn[0] if record in limited]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "sources"),
        (([Numbered(2, "Rome")], [1, 2]), "2 sizes for 1 sources"),
        (([Numbered(2, "Rome")], [0]), "sizes"),
        (([Numbered(2, "Rome")], None, 0, 0), "limit"),
    ],
)
def test_invalid_settings_are_errors(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Mixture(*arguments)


def test_more_records_than_there_are_is_an_error():
    with pytest.raises(ConfigurationError, match="3 records of Numbered are wanted, and Romes has 2"):
        Mixture([Numbered(2, "Rome")], [3]).read()


def test_a_data_module_trains_on_a_mixture():
    module = EditDataModule(train=Mixture([WorldFacts("train", limit=5), Numbered(3, "Rome")]), batch_size=2)
    module.setup("fit")
    records = module.records("fit")
    assert len(records) == 8
    assert len({record.id for record in records}) == 8
