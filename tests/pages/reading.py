"""Pages as a browser and a screen reader find them: by the parser of the standard library."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Node:
    def __init__(self, name, attributes, parent):
        self.name, self.attributes, self.parent = name, attributes, parent
        self.children, self.texts = [], []

    @property
    def text(self):
        """All text inside, in order, with single spaces."""
        return " ".join(" ".join(self._texts()).split())

    def _texts(self):
        for each in self.texts:
            if isinstance(each, str):
                yield each
            else:
                yield from each._texts()

    def all(self, *names, **attributes):
        """The elements inside of these names and attributes, in order; without names all."""
        found = []
        for child in self.children:
            given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
            is_named = not names or child.name in names
            if is_named and all(child.attributes.get(k) == v for k, v in given.items()):
                found.append(child)
            found += child.all(*names, **attributes)
        return found

    def one(self, *names, **attributes):
        (found,) = self.all(*names, **attributes)
        return found


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.node = Node("", {}, None)

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        node = Node(tag, dict(attrs), self.node)
        self.node.children.append(node)
        self.node.texts.append(node)
        if tag not in VOID:
            self.node = node

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.node.name == tag, f"</{tag}> ends <{self.node.name}>"
        self.node = self.node.parent

    def handle_data(self, data):
        self.node.texts.append(data)


def parsed(page):
    """The root of a page whose elements all end where they must."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.node is parser.root, f"<{parser.node.name}> does not end"
    return parser.root


def rows_of(table):
    """The rows of a table in its body, each a list of texts."""
    return [[cell.text for cell in row.children] for row in table.one("tbody").children]


def check(page):
    """What holds for every page; returns its root."""
    root = parsed(page)
    _check_frame(root)
    _check_references(root)
    _check_headings(root)
    _check_tables(root)
    _check_figures(root)
    for word in ("http://", "https://", "src=", "@import", "<script", "<link", "javascript:"):
        assert word not in page, word
    return root


def _check_frame(root):
    html = root.one("html")
    assert html.attributes["lang"] == "en"
    assert root.one("head").one("title").text
    main = root.one("main")
    first = root.one("body").children[0]
    assert (first.name, first.attributes["href"]) == ("a", f"#{main.attributes['id']}")
    # a page without scripts has no handlers of events either
    assert not [node for node in root.all() if any(k.startswith("on") for k in node.attributes)]


def _check_references(root):
    ids = [node.attributes["id"] for node in root.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in root.all():
        wanted = [node.attributes.get("aria-labelledby"), node.attributes.get("aria-describedby")]
        if "href" in node.attributes:
            assert node.attributes["href"].startswith("#")
            wanted.append(node.attributes["href"][1:])
        clip = node.attributes.get("clip-path", "")
        wanted += [clip.removeprefix("url(#").removesuffix(")")] if clip else []
        assert set(filter(None, wanted)) <= set(ids)


def _check_headings(root):
    headings = root.all("h1", "h2", "h3", "h4")
    levels = [int(node.name[1]) for node in headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(node.text for node in headings)


def _check_tables(root):
    for table in root.all("table"):
        assert table.children[0].name == "caption"
        assert table.children[0].text
        heads = table.one("thead").all("th", scope="col")
        for row in table.one("tbody").children:
            assert len(row.children) == len(heads)
            assert row.children[0].attributes["scope"] == "row"
        frame = table.parent
        assert (frame.attributes["tabindex"], frame.attributes["role"]) == ("0", "region")
        assert frame.attributes["aria-labelledby"]


def _check_figures(root):
    for figure in root.all("figure"):
        wide, narrow = figure.all("svg")
        assert (wide.attributes["class"], narrow.attributes["class"]) == ("wide", "narrow")
        assert wide.attributes["aria-label"] == narrow.attributes["aria-label"]
        assert all(svg.attributes["role"] == "img" for svg in (wide, narrow))
        assert len(wide.attributes["aria-label"]) > 20
        assert figure.one("figcaption").text
        # all colours are those of the page's theme
        for svg in (wide, narrow):
            for node in svg.all():
                assert "#0" not in node.attributes.get("style", "")
