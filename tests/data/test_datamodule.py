"""Which records the data module gives to a stage."""

import pytest

from lightning_edit.data import EditDataModule
from lightning_edit.data.read_report import ReadReport
from lightning_edit.data.reading import RecordSource
from lightning_edit.records import EditRecord, EditRequest


class Listed(RecordSource):
    def __init__(self, **subjects):
        self.subjects = subjects

    def read(self):
        requests = {
            name: EditRequest(f"The home of {subject or 'nobody'} is", "Rome", subject)
            for name, subject in self.subjects.items()
        }
        return ReadReport([EditRecord(name, (request,)) for name, request in requests.items()])


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_records_without_a_subject_are_kept_where_seen_subjects_are_left_out(stage):
    train = Listed(one="Ann", two=None)
    data = EditDataModule(train, Listed(a="Ann", b=None, c="Bo", d=None), skip_seen_subjects=True)
    data.setup(stage)
    assert [record.id for record in data.records(stage)] == ["b", "c", "d"]
    assert data.reports[stage].dropped == {"record whose subject is in the training records": 1}
    assert [record.id for record in data.records("fit")] == ["one", "two"]
