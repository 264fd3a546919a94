"""A folder of this machine and one in an object store do the same, as far as a run can tell."""

import builtins
import http.server
import os
import threading
from pathlib import Path

import pytest

from mim_jax import folders, integrity, layout, storage
from mim_jax.errors import UserError
from tests import buckets


@pytest.fixture(params=['local', 'store'])
def folder(request, tmp_path):
    return tmp_path / 'run' if request.param == 'local' else request.getfixturevalue('store')


def test_a_path_of_this_machine_is_pathlibs(tmp_path):
    for text in ('runs/x', 'a:/b', '/tmp/a://b', str(tmp_path), tmp_path, 'C://x'):
        assert type(storage.path(text)) is type(Path(text)) and storage.path(text) == Path(text)


def test_a_url_that_pathlib_took_for_a_path_is_one(store):
    assert storage.path(Path(str(store))) == storage.path(f'{store}/') == store
    assert str(storage.path(Path(str(store)))) == 'memory://bucket/run'


def test_what_is_written_is_read(folder):
    storage.make_folder(folder)
    storage.write_whole(folder / 'a.json', 'first')
    storage.write_whole(folder / 'a.json', 'größer')
    storage.append(folder / 'lines', 'one\n')
    storage.append(folder / 'lines', 'two\n')
    assert (folder / 'a.json').read_text(encoding='utf-8') == 'größer'
    assert (folder / 'lines').read_text(encoding='utf-8') == 'one\ntwo\n'
    assert {n: size for n, (size, _) in storage.files(folder).items()} == {'a.json': 8, 'lines': 8}


def test_a_copy_on_this_machine_is_of_what_is_there_now(folder, tmp_path):
    storage.make_folder(folder)
    for text in ('old', 'newer'):
        storage.write_whole(folder / 'weights.safetensors', text)
        copy = storage.fetched(folder / 'weights.safetensors')
        assert type(copy) is type(tmp_path) and copy.suffix == '.safetensors'
        assert copy.read_text() == text


def test_what_is_not_there_cannot_be_fetched(store):
    with pytest.raises(FileNotFoundError):
        storage.fetched(store / 'absent')


def test_a_folder_gets_another_name_with_all_that_is_in_it(folder):
    for name in ('checkpoints/5/variables/d', 'checkpoints/5/x', 'checkpoints/10/x', 'config.json'):
        storage.make_folder((folder / name).parent)
        storage.write_whole(folder / name, name)
    storage.rename(folder / 'checkpoints' / '5', folder / 'checkpoints' / '5.damaged')
    expected = {'10/x', '5.damaged/variables/d', '5.damaged/x'}
    assert set(storage.files(folder / 'checkpoints')) == expected
    walked = {
        (path.relative_to(folder.parent).as_posix(), *sorted(folders), *sorted(names))
        for path, folders, names in storage.walk(folder.parent)
    }
    assert ('run', 'checkpoints', 'config.json') in walked
    assert ('run/checkpoints', '10', '5.damaged') in walked


def test_a_whole_checkpoint_in_a_store_says_so(store):
    for step in (3, 5):
        storage.write_whole(store / 'checkpoints' / str(step) / integrity.WHOLE, '{}')
    assert layout.saved_steps(store) == []
    storage.write_whole(store / 'checkpoints' / '3' / layout.COMMIT_FILE, '')
    storage.write_whole(store / 'checkpoints' / '3.damaged' / layout.COMMIT_FILE, '')
    assert layout.saved_steps(store) == [3]
    assert layout.saved_steps(store / 'absent') == []


def test_damage_is_found_wherever_a_checkpoint_is(folder):
    for name, text in ((integrity.WHOLE, '{}'), ('variables/d', 'numbers'), ('progress', '1')):
        storage.make_folder((folder / name).parent)
        storage.write_whole(folder / name, text)
    integrity.seal(folder)
    assert integrity.damage(folder) is None
    storage.write_whole(folder / 'variables/d', 'nUmbers')
    assert integrity.damage(folder, digests=False) is None
    assert integrity.damage(folder) == 'variables/d has other contents than were written'
    (folder / 'progress').unlink()
    assert integrity.damage(folder) == 'progress is missing'


def test_what_grows_is_copied_now_and_then(store, monkeypatch):
    now = 100.0
    monkeypatch.setattr(storage.time, 'monotonic', lambda: now)
    storage.write_whole(store / 'lines', 'old\n')
    mirror = storage.Mirror(store)
    mirror.fetch('lines', 'absent')
    with open(mirror.local / 'lines', 'a') as file:
        file.write('new\n')
        file.flush()
        assert (store / 'lines').read_text() == 'old\n'
        mirror.sync()
        assert (store / 'lines').read_text() == 'old\nnew\n'
        file.write('newer\n')
        file.flush()
        mirror.sync()  # too soon
        assert (store / 'lines').read_text() == 'old\nnew\n'
        now += storage.INTERVAL + 1
        mirror.sync()
        assert (store / 'lines').read_text() == 'old\nnew\nnewer\n'
        file.write('last\n')
    mirror.close()
    assert (store / 'lines').read_text() == 'old\nnew\nnewer\nlast\n'
    assert not mirror.local.exists()


def test_a_store_that_is_away_costs_nothing_until_something_must_be_there(
    store, monkeypatch, caplog
):
    mirror = storage.Mirror(store)
    (mirror.local / 'lines').write_text('one\n')

    def fails(*_, **__):
        raise OSError('Forbidden: no more')

    with monkeypatch.context() as patch:
        patch.setattr(type(store), 'write_bytes', fails)
        mirror.sync()
        assert 'could not be written (Forbidden: no more)' in caplog.text
        with pytest.raises(OSError, match='no more'):
            mirror.sync(now=True)
    mirror.sync(now=True)
    assert (store / 'lines').read_text() == 'one\n'
    mirror.close()


def test_a_folder_of_this_machine_is_its_own_mirror(tmp_path):
    mirror = storage.Mirror(tmp_path)
    assert mirror.local == tmp_path
    mirror.fetch('absent')
    mirror.close()
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_one_of_this_machine(store):
    with pytest.raises(UserError, match='name a folder of this machine'), folders.new_folder(store):
        pass


def test_what_opens_a_bucket_is_missing(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **kwargs):
        if name == 'upath':
            raise ImportError("No module named 'upath'")
        return imported(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(UserError, match=r"^gs://bucket/x: .*'upath'.*pip install -e '\.\[gcs\]'`"):
        storage.path('gs://bucket/x')


def test_nothing_opens_such_a_url():
    pytest.importorskip('upath')
    with pytest.raises(UserError, match="^tape://x/y cannot be opened: .*'tape'"):
        storage.path('tape://x/y')


class _Refuses(http.server.BaseHTTPRequestHandler):
    """Answers as Google does to whom it does not know."""

    def do_GET(self):
        self.send_response(401)
        self.end_headers()
        said = 'Anonymous caller does not have storage.objects.list access'
        self.wfile.write(b'{"error": {"code": 401, "message": "%s"}}' % said.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def found_at(monkeypatch):
    """Has buckets looked for at a port of this machine, trying once."""
    gcsfs = pytest.importorskip('gcsfs')

    def use(port):
        for name, value in buckets.at(port).items():
            monkeypatch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()
        monkeypatch.setattr(gcsfs.GCSFileSystem, 'retries', 1)

    yield use
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_a_bucket_that_may_not_be_looked_at(found_at):
    server = http.server.HTTPServer(('localhost', 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        found_at(server.server_port)
        with pytest.raises(UserError, match='gs://mine may not be .*Anonymous.*gcloud auth'):
            storage.path('gs://mine/x')
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
def test_a_bucket_that_cannot_be_reached(found_at):
    with http.server.HTTPServer(('localhost', 0), _Refuses) as server:
        port = server.server_port  # nobody listens there any more
    found_at(port)
    with pytest.raises(UserError, match='^gs://mine cannot be reached .*network'):
        storage.path('gs://mine/x')


@pytest.fixture
def bucket(found_at):
    pytest.importorskip('gcp_storage_emulator')
    with buckets.serving() as environment:
        found_at(int(environment['STORAGE_EMULATOR_HOST'].rpartition(':')[2]))
        yield storage.path(f'gs://{buckets.BUCKET}/run')


def test_a_bucket_that_is_not_there(bucket):
    assert not bucket.exists()
    with pytest.raises(UserError, match='^gs://mine: there is no such bucket'):
        storage.path('gs://mine/x')


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_found_and_set_aside(bucket):
    folder = bucket / 'checkpoints' / '5'
    for name in (integrity.WHOLE, layout.COMMIT_FILE, 'variables/d'):
        storage.write_whole(folder / name, 'numbers')
    integrity.seal(folder)
    assert layout.saved_steps(bucket) == [5]
    assert integrity.damage(folder) is None
    assert integrity.STORE in (folder / integrity.FILE).read_text()  # nothing was read for it
    storage.write_whole(folder / 'variables/d', 'nUmbers')
    assert integrity.damage(folder) == 'variables/d has other contents than were written'
    before = storage.files(folder)
    storage.rename(folder, folder.with_name('5.damaged'))
    assert layout.saved_steps(bucket) == []
    assert storage.files(folder.with_name('5.damaged')) == before


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    storage.write_whole(tmp_path / 'a', 'old')

    def fails(*_):
        raise OSError('full')

    monkeypatch.setattr(os, 'fsync', fails)
    with pytest.raises(OSError, match='full'):
        storage.write_whole(tmp_path / 'a', 'new')
    assert (tmp_path / 'a').read_text() == 'old'
