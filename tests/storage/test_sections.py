"""A trainer's own sections: kept in the run folder, shown as text, damaged files refused."""

import base64

import pytest

from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import RunFolder, Section, read_sections, write_report, write_sections

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"seed": 0})


def test_sections_come_back_and_stand_in_the_report(folder):
    (folder.path / "picture.png").write_bytes(PNG)
    sections = [
        Section(title="Judged <b>", note="A note & more", heads=("x", "y", "z"), rows=(("1", "<i>two</i>", "3"),)),
        Section(title="Drawn", picture="picture.png"),
    ]
    write_sections(folder, sections)
    assert read_sections(folder) == sections
    page = write_report(folder, title="t").read_text()
    assert "<h2>Judged &lt;b&gt;</h2>" in page
    assert "&lt;i&gt;two&lt;/i&gt;" in page
    assert "A note &amp; more" in page
    assert base64.b64encode(PNG).decode() in page
    assert page.index("Judged") < page.index("Drawn") < page.index("Configuration")


def test_no_file_is_no_section(folder):
    assert read_sections(folder) == []


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"heads": []}]', '[{"heads": [], "rows": [], "extra": 1, "title": "t"}]', "{}x"]
)
def test_damaged_file_is_refused(folder, text):
    (folder.path / "sections.json").write_text(text)
    with pytest.raises(InputError, match="sections"):
        read_sections(folder)


@pytest.mark.parametrize("picture", ["none.png", "../outside.png"])
def test_picture_that_is_missing_or_outside_is_refused(folder, picture):
    (folder.path.parent / "outside.png").write_bytes(PNG)
    write_sections(folder, [Section(title="t", picture=picture)])
    with pytest.raises(InputError, match="is not in the run folder"):
        read_sections(folder)
