"""Whatever the format of a file, its records are those that somebody wrote into it, or a sentence names the place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from forebear.data.records import checked_records, read_records
from forebear.data.sources import Source, source_files, source_rows
from forebear.errors import ForebearError

# Texts that readers are known to change: what looks like a number or like nothing, separators,
# quotes, line ends of Unicode, white space at the ends.
TEXTS = ["None", "NA", "007", 'a, "quoted"; text', "two\nlines", "a\u2028b\x85c", " ends with a space ", "Ünïcödé 😀"]
PAIRS = [{"id": f"q{k}", "prompt": text, "completion": f" {text}"} for k, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record) + "\n" for record in PAIRS)


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(content)


def as_csv(delimiter: str = ",") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["id", "prompt", "completion"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(PAIRS)
    return buffer.getvalue().encode()


def dataset():
    return pytest.importorskip("datasets").Dataset.from_list(PAIRS)


def write_parquet(path: Path) -> None:
    dataset().to_parquet(path)


def write_arrow(path: Path) -> None:
    folder = path.with_suffix("")
    dataset().save_to_disk(folder)
    next(folder.glob("*.arrow")).rename(path)


def write_arrow_file(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(PAIRS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def write_shards(path: Path) -> None:
    path.mkdir()
    (path / "README.md").write_text("# not a record")
    (path / "_SUCCESS").touch()
    (path / "nested").mkdir()
    lines = LINES.splitlines(keepends=True)
    (path / "nested/2.jsonl").write_text("".join(lines[5:]))
    (path / "1.jsonl.gz").write_bytes(gzip.compress("".join(lines[:5]).encode()))


def write_split_folder(path: Path) -> None:
    pytest.importorskip("datasets").DatasetDict({"train": dataset()}).save_to_disk(path)


BOM, ENCODED = b"\xef\xbb\xbf", LINES.encode()
FORMATS: dict[str, bytes | Callable[[], bytes] | Callable[[Path], None]] = {
    "lines.jsonl": ENCODED,
    "lines.json": ENCODED,
    "name-without-suffix": ENCODED,
    "no-last-line-end.jsonl": ENCODED.rstrip(b"\n"),
    "bom.jsonl": BOM + ENCODED,
    "windows.jsonl": ENCODED.replace(b"\n", b"\r\n"),
    "blank.jsonl": b"\n" + ENCODED.replace(b"\n", b"\n \n") + b"\r\n\n",
    "array.json": json.dumps(PAIRS).encode(),
    "pretty-array.jsonl": BOM + b"\n " + json.dumps(PAIRS, indent=2, ensure_ascii=False).encode() + b"\n",
    "lines.jsonl.gz": gzip.compress(ENCODED),
    "two-members.jsonl.gz": gzip.compress(ENCODED[:100]) + gzip.compress(ENCODED[100:]),
    "gzip-by-another-name.jsonl": gzip.compress(ENCODED),
    "plain-by-another-name.jsonl.gz": ENCODED,
    "lines.jsonl.bz2": bz2.compress(ENCODED),
    "lines.jsonl.xz": lzma.compress(ENCODED),
    "lines.jsonl.zst": lambda: zstd(ENCODED),
    "two-frames.jsonl.zst": lambda: zstd(ENCODED[:100]) + zstd(ENCODED[100:]),
    "array.json.zst": lambda: zstd(json.dumps(PAIRS).encode()),
    "table.csv": as_csv(),
    "bom.csv": BOM + as_csv(),
    "semicolons.csv": as_csv(";"),
    "table.tsv": as_csv("\t"),
    "table.csv.gz": gzip.compress(as_csv()),
    "UPPER.CSV": as_csv(),
    "table.parquet": write_parquet,
    "parquet-without-suffix": write_parquet,
    "stream.arrow": write_arrow,
    "file.arrow": write_arrow_file,
    "shards": write_shards,
    "saved": lambda path: dataset().save_to_disk(path),
    "saved-in-shards": lambda path: dataset().save_to_disk(path, num_shards=3),
    "saved-splits": write_split_folder,
}


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if callable(content):
        content = content(path) if content.__code__.co_argcount else content()
    if isinstance(content, bytes):
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_records_that_were_written(tmp_path, name: str):
    assert read_records(written(tmp_path, name, FORMATS[name])) == PAIRS


@pytest.mark.parametrize("name", ["lines.jsonl", "array.json", "table.csv", "table.parquet", "saved", "shards"])
def test_a_limit_reads_no_further(tmp_path, name: str):
    assert read_records(written(tmp_path, name, FORMATS[name]), limit=3) == PAIRS[:3]


def test_each_line_of_a_text_is_a_document(tmp_path):
    (tmp_path / "my.txt").write_bytes(BOM + b"one\r\n\n  \ntwo\xe2\x80\xa8more \nthree")
    assert read_records(tmp_path / "my.txt") == [
        {"id": "1", "text": "one"},
        {"id": "2", "text": "two\u2028more "},
        {"id": "3", "text": "three"},
    ]


def test_ids_are_running_numbers_over_all_files(tmp_path):
    for name, texts in (("b", "cd"), ("a", "ab")):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n\n" for text in texts))
    expected = [{"text": text, "id": str(k)} for k, text in enumerate("abcd", start=1)]
    assert read_records(tmp_path) == expected
    assert read_records(str(tmp_path / "*.jsonl")) == expected
    assert source_files(tmp_path / "*.jsonl") == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


@pytest.mark.parametrize("name", ["table.csv", "lines.jsonl", "array.json", "table.parquet", "saved"])
def test_columns_of_other_names_are_read_as_they_are_called(tmp_path, name: str):
    path = written(tmp_path, name, FORMATS[name])
    rows = [row.content for row in source_rows(Source(path=str(path), columns={"text": "completion"}))]
    assert rows == [{"id": pair["id"], "text": pair["completion"]} for pair in PAIRS]
    rows = [row.content for row in source_rows(Source(path=str(path), columns={"group": "id"}))]
    assert rows == [{"group": p["id"], "prompt": p["prompt"], "completion": p["completion"]} for p in PAIRS]
    with pytest.raises(ForebearError, match=r"has no (column )?'contents'.*there are 'id', 'prompt', 'completion'"):
        list(source_rows(Source(path=str(path), columns={"text": "contents"})))


def test_a_table_s_classes_are_names_and_what_is_no_value_is_absent(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["negative", "positive"]),
        group=datasets.Value("string"),
        when=datasets.Value("timestamp[s]"),
    )
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1], "group": ["g", None, None], "when": [1, 2, 3]}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "table.parquet")
    table.save_to_disk(tmp_path / "saved")
    for name in ("table.parquet", "saved"):
        assert read_records(tmp_path / name) == [
            {"text": "a", "label": "positive", "group": "g", "id": "1"},
            {"text": "b", "label": "negative", "id": "2"},
            {"text": "c", "id": "3"},
        ]


def test_chats_in_tables_are_those_of_json_lines(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    with_tool = [*turns, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    chats = [{"messages": turns}, {"messages": with_tool}]
    parquet.write_table(pa.Table.from_pylist(chats), tmp_path / "chats.parquet")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    with (tmp_path / "chats.csv").open("w") as handle:
        writer = csv.writer(handle)
        writer.writerows([["messages"], *([json.dumps(chat["messages"])] for chat in chats)])
    expected = read_records(tmp_path / "chats.jsonl")
    assert read_records(tmp_path / "chats.parquet") == read_records(tmp_path / "chats.csv") == expected


def test_an_empty_cell_is_an_empty_prompt_but_no_id(tmp_path):
    (tmp_path / "table.csv").write_text("id,question,completion,label\n,,yes,\n")
    rows = source_rows(
        Source(path=str(tmp_path / "table.csv"), columns={"prompt": "question", "completion": "completion"})
    )
    assert [row.content for row in rows] == [{"prompt": "", "completion": "yes"}]


MANY = b'{"text": "many"}\n' * 10_000
BROKEN = {
    "cut.jsonl.gz": (gzip.compress(MANY)[:-20], "the compressed file is damaged or cut off"),
    "changed.jsonl.gz": (gzip.compress(ENCODED)[:-8] + bytes(8), "the compressed file is damaged or cut off"),
    "cut.jsonl.xz": (lzma.compress(ENCODED)[:-20], "the compressed file is damaged or cut off"),
    "cut.jsonl.bz2": (bz2.compress(ENCODED)[:-20], "the compressed file is damaged or cut off"),
    "cut.jsonl.zst": (lambda: zstd(MANY)[:-20], "the compressed file is damaged or cut off"),
    "cut.json": (json.dumps(PAIRS).encode()[:-30], "after element 7 of the array: not valid JSON"),
    "more.json": (b'[{"text": "a"}] {"text": "b"}', "Extra data after the array"),
    "commas.json": (b'[{"text": "a"} {"text": "b"}]', "after element 0 of the array: not valid JSON"),
    "strings.json": (b'["a", "b"]', "element 1: expected a JSON object, found str"),
    "pretty.json": (b'{\n  "text": "a"\n}\n', "each line must be a JSON object of its own"),
    "empty.json": (b"[]", "has no records"),
    "empty.jsonl": (b"", "has no records"),
    "blank.jsonl": (b"\n\n", "has no records"),
    "empty.csv": (b"", "has no records"),
    "only-names.csv": (b"prompt,completion\n", "has no records"),
    "ragged.csv": (b"prompt,completion\na,b\na, which, is\n", "line 3: has 3 cells, but the first row names 2 columns"),
    "quote.csv": (b'text\n"never closed\nmore\n', "not valid CSV"),
    "twice.csv": (b"text,text\na,b\n", "names the column 'text' twice"),
    "latin.csv": ("text\nGrüße\n".encode("latin-1"), "line 2: not valid UTF-8"),
    "latin.txt": ("Grüße\n".encode("latin-1"), "iconv -f LATIN1 -t UTF-8 latin.txt"),
    "latin.json": ('[{"text": "Grüße"}]'.encode("latin-1"), "not valid UTF-8"),
    "utf16.jsonl": (LINES.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 utf16.jsonl"),
    "utf16.txt": ("abc\n".encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8 utf16.txt"),
    "utf16.json": (json.dumps(PAIRS).encode("utf-16"), "iconv -f UTF-16 -t UTF-8 utf16.json"),
    "broken.parquet": (b"PAR1 and no more", "cannot be read as Parquet"),
    "text.parquet": (b"text", "cannot be read as Parquet"),
    "empty.parquet": (b"", "cannot be read as Parquet"),
    "broken.arrow": (b"ARROW1 and no more", "cannot be read as Arrow"),
    "book.xlsx": (b"PK\x03\x04", "its name does not say what it contains"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_named_in_a_sentence(tmp_path, name: str):
    content, words = BROKEN[name]
    path = written(tmp_path, name, content)
    with pytest.raises(ForebearError) as caught:
        read_records(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_damaged_saved_folder_is_named(tmp_path):
    dataset().save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ForebearError, match="cannot be read as a folder that `datasets` saved"):
        read_records(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(ForebearError, match="cannot be read as a folder that `datasets` saved"):
        read_records(tmp_path / "saved")


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/a.jsonl").touch()
    (tmp_path / "mixed/b.csv").touch()
    for name, words in {
        "missing.jsonl": "there is no such file",
        "*.jsonl": "no file has such a name",
        "folder": "the folder has no file whose name ends in .jsonl",
        "mixed": "has files of several kinds (CSV, JSON): a.jsonl, b.csv",
    }.items():
        with pytest.raises(ForebearError) as caught:
            read_records(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {words}")


def test_splits_are_chosen_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": dataset(), "test": dataset().select([0])}).save_to_disk(tmp_path / "saved")
    assert read_records(Source(path=str(tmp_path / "saved"), split="test")) == PAIRS[:1]
    for split in (None, "dev"):
        with pytest.raises(ForebearError, match="set `split` to one of train, test"):
            read_records(Source(path=str(tmp_path / "saved"), split=split))
    dataset().save_to_disk(tmp_path / "one")
    with pytest.raises(ForebearError, match="leave `split` out"):
        read_records(Source(path=str(tmp_path / "one"), split="train"))
    (tmp_path / "lines.jsonl").write_text(LINES)
    with pytest.raises(ForebearError, match="`split` is for"):
        read_records(Source(path=str(tmp_path / "lines.jsonl"), split="train"))


def test_an_id_that_is_used_twice_is_named_with_both_places(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('\n{"text": "a", "id": "one"}\n')
    with pytest.raises(ForebearError, match=r"b\.jsonl, line 2: the id 'one' was already used in .*a\.jsonl, line 2\."):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["table.parquet", "saved", "lines.jsonl.zst", "hub"])
def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch, name: str):
    source = Source(hub="org/data", revision="v1")
    if name != "hub":
        source = Source(path=str(written(tmp_path, name, FORMATS[name])))
    for library in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ForebearError, match=r'pip install -e "\.\[data\]"'):
        read_records(source)


def test_other_formats_need_no_library(tmp_path, monkeypatch):
    for library in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    for name in ("lines.jsonl.gz", "array.json", "table.csv", "lines.jsonl.xz"):
        assert read_records(written(tmp_path, name, FORMATS[name])) == PAIRS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind: str):
    def peak(count: int) -> int:
        texts, path = [{"text": "word " * 400}] * count, tmp_path / f"{count}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in texts))
        elif kind == "json":
            path.write_text(json.dumps(texts))
        elif kind == "csv":
            path.write_text("text\n" + "".join(record["text"] + "\n" for record in texts))
        else:
            pytest.importorskip("datasets").Dataset.from_list(texts).to_parquet(path, batch_size=100)
        tracemalloc.start()
        assert sum(1 for _ in checked_records(path)) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(4000) < peak(2000) + 1_000_000  # of 8 and 4 MB of text
