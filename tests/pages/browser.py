"""Pages in headless Chromium: what a reader sees at a width and in a theme."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 801, 1200)
THEMES = {"dark": 0, "light": 1}

MEASURE = """
const seen = [];
const luminance = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
    .map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const opaque = colour => !/^rgba\\(.*, 0\\)$/.test(colour);
const behind = (view, node) => {
  for (; node; node = node.parentElement) {
    const colour = view.getComputedStyle(node).backgroundColor;
    if (opaque(colour)) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const contrast = (view, node) => {
  const style = view.getComputedStyle(node);
  const own = node.namespaceURI.endsWith('svg') ? style.fill : style.color;
  const [a, b] = [luminance(own), luminance(behind(view, node))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
const writes = node => [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
const measure = frame => {
  const view = frame.contentWindow, page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.body.querySelectorAll('*')].filter(n => n.checkVisibility());
  const texts = boxes.filter(n => writes(n) && !n.closest('title, .skip'));
  const sizes = texts.map(n => {
    const size = parseFloat(view.getComputedStyle(n).fontSize);
    const svg = n.closest('svg');
    return svg ? size * svg.clientWidth / svg.viewBox.baseVal.width : size;
  });
  const places = [...page.querySelectorAll('svg')].filter(n => n.clientWidth).flatMap(svg => {
    const outer = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].map(n => [n.getBoundingClientRect(), outer, n]);
  });
  return {
    width: view.innerWidth,
    dark: view.matchMedia('(prefers-color-scheme: dark)').matches,
    height: root.scrollHeight,
    overflow: root.scrollWidth - root.clientWidth,
    outside: boxes.filter(n => !n.closest('.scroll, .skip, svg'))
      .filter(n => n.getBoundingClientRect().right > view.innerWidth + 0.5)
      .map(n => n.outerHTML.slice(0, 80)),
    cut: places.filter(([inner, outer]) => inner.right > outer.right + 1
      || inner.left < outer.left - 1 || inner.bottom > outer.bottom + 1
      || inner.top < outer.top - 1).map(([, , n]) => n.textContent),
    contrast: Math.min(...texts.map(n => contrast(view, n))),
    faint: texts.filter(n => contrast(view, n) < 4.5).map(n => n.outerHTML.slice(0, 80)),
    smallest: Math.min(...sizes),
    charts: [...page.querySelectorAll('svg')].filter(n => n.clientWidth)
      .map(n => n.getAttribute('class')),
    focusable: [...page.querySelectorAll('a, summary, [tabindex="0"]')]
      .filter(n => n.checkVisibility()).length,
  };
};
addEventListener('load', () => {
  for (const frame of document.querySelectorAll('iframe')) {
    const folded = measure(frame);
    for (const each of frame.contentDocument.querySelectorAll('details')) each.open = true;
    seen.push({name: frame.title, folded, open: measure(frame)});
  }
  const out = document.createElement('pre');
  out.id = 'seen';
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
"""


def browser():
    """The path of a browser, None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def measured(pages, theme, folder):
    """What is seen of each page (name -> HTML) at each width, and what the console says.

    Returns rows with ``name``, and the numbers of the page as it opens (``folded``), and with all
    details open (``open``).
    """
    frames = "\n".join(
        f'<iframe title="{name}" width="{width}" height="800" style="border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    file = Path(folder) / f"{theme}.html"
    file.write_text(f"<!DOCTYPE html><body>{frames}<script>{MEASURE}</script>", encoding="utf-8")
    flags = ("--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom")
    out, log = run(*flags, f"--blink-settings=preferredColorScheme={THEMES[theme]}", file.as_uri())
    found = re.search(r'<pre id="seen">(.*?)</pre>', out, flags=re.DOTALL)
    assert found, log[-2000:]
    console = [line for line in log.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


def run(*arguments):
    """What a browser writes to its two outputs; its processes are gone afterwards."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            *arguments,
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            return process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
