"""A stand-in for an OpenAI-compatible chat endpoint on the loopback interface, which misbehaves as it is told."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Chat:
    """`script` holds what the next requests get, in their order: see `Handler.do_POST`; then every one gets "ok"."""

    def __init__(self):
        self.script = []
        self.requests = []
        self.keys = []
        self.url = ""
        self.released = threading.Event()
        self.lock = threading.Lock()

    def answer(self, body):
        return (
            f"A rendering of what was asked in {len(body['messages'][0]['content'])} characters, seed {body['seed']}."
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        chat = self.server.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            chat.requests.append((self.path, body))
            chat.keys.append(self.headers.get("Authorization"))
            what = chat.script.pop(0) if chat.script else "ok"
        choice = {"message": {"role": "assistant", "content": chat.answer(body)}, "finish_reason": "stop"}
        whole = {"choices": [choice], "usage": {"total_tokens": 7}}
        if what == "silence":
            chat.released.wait(20)
            self.close_connection = True
        elif what == "cut":
            self.send(200, json.dumps(whole).encode(), length=10_000)
        elif isinstance(what, bytes):
            self.send(200, what)
        elif isinstance(what, tuple):
            said = what[1].get("echo", "as the test asked")
            self.send(what[0], json.dumps({"error": {"message": said}}).encode(), **what[1])
        elif what == "long":
            choice["finish_reason"] = "length"
            self.send(200, json.dumps(whole).encode())
        else:
            self.send(200, json.dumps(whole).encode())

    def send(self, status, content, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = length is not None


@contextmanager
def running_chat():
    """Serve a `Chat` on a free port of 127.0.0.1 until the block ends."""
    chat = Chat()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.chat = chat
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        chat.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
