"""The part of Google Cloud Storage's JSON API that gcsfs uses here, in memory, after Google's reference.

https://cloud.google.com/storage/docs/json_api/v1/objects: insert (multipart and resumable, ifGenerationMatch=0 answers
412 when the object is there), get (metadata, media with Range), list (prefix, delimiter, pages), delete.
"""

import base64
import hashlib
import itertools
import json
import threading
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response

PAGE = 7  # objects of a listing's page: small, so that listings are paged


class FakeGcs:
    """WSGI application. `objects`: (bucket, name) -> resource with its bytes under "data"."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict] = {}
        self._uploads: dict[str, dict] = {}
        self._count = itertools.count(1)
        self._lock = threading.Lock()  # precondition and write are one step

    def __call__(self, environ, start_response):
        with self._lock:
            return self._answer(Request(environ))(environ, start_response)

    def _answer(self, request: Request) -> Response:
        kind, _, rest = request.path.partition("storage/v1/b/")
        bucket, _, name = rest.partition("/o")
        name = unquote(name.removeprefix("/"))
        if "upload" in kind:
            return self._upload(request, bucket)
        if not name:
            return _json(self._list(request, bucket) if rest.endswith("/o") else {"name": bucket, "kind": "bucket"})
        found = self.objects.get((bucket, name))
        if found is None:
            return _error(404, f"No such object: {bucket}/{name}")
        if request.method == "DELETE":
            del self.objects[bucket, name]
            return Response(status=204)
        if request.args.get("alt") != "media":
            return _json(_public(found))
        data, span = found["data"], request.range
        if span is None:
            return Response(data)
        start, stop = span.range_for_length(len(data))
        return Response(data[start:stop], 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _upload(self, request: Request, bucket: str) -> Response:
        if "session" in request.args:  # a chunk of a resumable upload
            upload = self._uploads[request.args["session"]]
            upload["data"] += request.data
            total = request.headers["Content-Range"].rpartition("/")[2]
            if len(upload["data"]) < int(total):
                return Response(status=308, headers={"Range": f"bytes=0-{len(upload['data']) - 1}"})
            return self._insert(bucket, upload["name"], upload["data"], upload["new"])
        new = request.args.get("ifGenerationMatch") == "0"
        if request.args["uploadType"] == "resumable":
            name, session = request.args["name"], str(next(self._count))
            if new and (bucket, name) in self.objects:
                return _error(412, "At least one of the pre-conditions you specified did not hold.")
            self._uploads[session] = {"name": name, "data": b"", "new": new}
            return Response(headers={"Location": f"{request.host_url}upload/storage/v1/b/{bucket}/o?session={session}"})
        boundary = b"--" + request.mimetype_params["boundary"].encode()
        _, metadata, media, _ = request.data.split(boundary)
        name = json.loads(metadata.partition(b"\n\n")[2])["name"]
        return self._insert(bucket, name, media.partition(b"\n\n")[2].removesuffix(b"\n"), new)

    def _insert(self, bucket: str, name: str, data: bytes, new: bool) -> Response:
        if new and (bucket, name) in self.objects:
            return _error(412, "At least one of the pre-conditions you specified did not hold.")
        number = next(self._count)
        self.objects[bucket, name] = {
            "name": name, "bucket": bucket, "size": str(len(data)), "data": data,
            "generation": str(number), "etag": f"tag{number}", "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        return _json(_public(self.objects[bucket, name]))

    def _list(self, request: Request, bucket: str) -> dict:
        prefix, delimiter = request.args.get("prefix", ""), request.args.get("delimiter", "")
        items, prefixes = [], set()
        for place, name in sorted(self.objects):
            if place == bucket and name.startswith(prefix):
                folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if found:
                    prefixes.add(f"{prefix}{folder}/")
                else:
                    items.append(_public(self.objects[place, name]))
        start = int(request.args.get("pageToken", 0))
        page = {
            "kind": "storage#objects",
            "items": items[start : start + PAGE],
            "prefixes": sorted(prefixes) if start == 0 else [],
        }
        return page | ({"nextPageToken": str(start + PAGE)} if start + PAGE < len(items) else {})


def _public(resource: dict) -> dict:
    return {k: v for k, v in resource.items() if k != "data"}


def _json(value: dict) -> Response:
    return Response(json.dumps(value), content_type="application/json")


def _error(code: int, message: str) -> Response:
    return Response(json.dumps({"error": {"code": code, "message": message}}), code, content_type="application/json")
