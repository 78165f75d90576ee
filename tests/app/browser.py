"""A page in a real browser: how wide it is, what it asked for, and where its drawings and their labels lie."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium")

_PROBE = """<script>addEventListener('load', () => {
  const root = document.documentElement, drawings = [...document.querySelectorAll('svg')];
  let outside = 0;
  for (const drawing of drawings) {
    const around = drawing.getBoundingClientRect();
    for (const label of drawing.querySelectorAll('text')) {
      const box = label.getBoundingClientRect();
      if (box.left < around.left - 2 || box.right > around.right + 2 || box.top < around.top - 2
          || box.bottom > around.bottom + 2) outside += 1;
    }
  }
  document.title = JSON.stringify({
    scroll: root.scrollWidth, inner: innerWidth, resources: performance.getEntriesByType('resource').length, outside,
    drawings: drawings.map(d => [d.getBoundingClientRect().width, d.getBoundingClientRect().height]) });
})</script>"""


def laid_out(page: Path, folder: Path, *, width: int) -> dict[str, Any]:
    """Return what the browser made of a page in a window of a width; the page itself carries no script."""
    assert BROWSER
    text = page.read_text()
    policy = re.search(r"<meta http-equiv=[^>]*>", text)
    assert policy
    (folder / "page.html").write_text(text.replace(policy[0], "").replace("</body>", f"{_PROBE}</body>"))
    frame = folder / "frame.html"
    # A framed page is as wide as its frame, below the least width of a browser window too.
    frame.write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:4000px;border:0'></iframe><script>"
        "addEventListener('load', () => setTimeout(() => document.body.dataset.seen ="
        "document.getElementById('f').contentDocument.title, 300))</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
    flags += ["--virtual-time-budget=4000", "--window-size=1400,1000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([BROWSER, *flags, frame.as_uri()], capture_output=True, text=True, timeout=90, check=False)
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stdout[-500:]
    return json.loads(unescape(seen[1]))
