"""An object store on this machine that speaks as Google Cloud Storage does: what comes with the
package gcp-storage-emulator, at a port of its own, in memory.
"""

import contextlib
import functools
import http.server
import logging
import re
import threading
import urllib.parse

BUCKET = 'bucket'


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # TensorStore writes a checkpoint's arrays at once


@contextlib.contextmanager
def serving():
    """Gives the environment by which gcsfs and TensorStore find it, with one empty bucket."""
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler, Router
    from gcp_storage_emulator.storage import Storage

    logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    one_at_a_time = threading.Lock()  # it is not made for threads

    class Handler(RequestHandler):
        def do_GET(self):
            with one_at_a_time:
                Router(self).handle(self.command)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def end_headers(self):
            # Left out there, and TensorStore cannot write an object again without.
            read = re.match(r'/storage/v1/b/([^/]+)/o/([^?]+)\?.*alt=media', self.path)
            if read:
                with contextlib.suppress(NotFound):
                    found = storage.get_file_obj(read[1], urllib.parse.unquote(read[2]))
                    self.send_header('x-goog-generation', found['generation'])
            super().end_headers()

    server = _Server(('localhost', 0), functools.partial(Handler, storage))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield at(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at(port):
    """The environment by which a store at a port of this machine is found, without credentials."""
    url = f'http://localhost:{port}'
    return {
        'STORAGE_EMULATOR_HOST': url,
        'TENSORSTORE_GCS_HTTP_URL': url,
        'NO_GCE_CHECK': 'true',
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    }
