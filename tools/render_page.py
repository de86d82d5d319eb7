"""The README's picture of the live model: its page as a visitor sees it, in headless Chromium.

python tools/render_page.py        writes docs/live_page.png
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from minipali.page import make_page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browsing import chromium, visit, wait_for  # noqa: E402

SIZE = {"width": 1100, "height": 1000}
PRESS = """[...document.querySelectorAll("button")].find((one) => {}).click()"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(make_page("small"), encoding="utf-8")
        profile = Path(folder) / "profile"
        profile.mkdir()
        with chromium(profile) as browser:
            browser.call(
                "Emulation.setDeviceMetricsOverride", **SIZE, deviceScaleFactor=1, mobile=True
            )
            visit(browser, page)
            browser.run(PRESS.format("""one.dataset.name?.startsWith("two_frogs")"""))
            wait_for(lambda: "frogs" in browser.run("""picture.ariaLabel"""))
            browser.run(PRESS.format("""one.textContent === "detect frog" """))
            wait_for(lambda: "frog" in browser.run("""$("told").textContent"""))
            browser.run("document.activeElement.blur()")
            end = browser.run("""$("rivals").getBoundingClientRect().bottom""") + 16
            clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": end, "scale": 1}
            shot = browser.call("Page.captureScreenshot", format="png", clip=clip)["data"]
    target = ROOT / "docs" / "live_page.png"
    picture = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
    picture.quantize(256).save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}, {target.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
