/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the page does when the user points, types and searches. */

const MAX_LISTED = 4;

function count(nr, word) {
	return nr.toLocaleString("en") + " " + word + (nr === 1 ? "" : "s");
}

class Page {
	/** @param {Model} model */
	constructor(model) {
		this.model = model;
		this.canvas = /** @type {HTMLCanvasElement} */ (document.getElementById("canvas"));
		this.tip = document.getElementById("tip");
		this.search = /** @type {HTMLInputElement} */ (document.getElementById("search"));
		this.pinned = false; /* what is chosen stays so when the mouse moves */
		this.last = 0; /* which of the mappings with the name that was searched for */
		this.lastWords = "";
		this.found = document.getElementById("found");
		this.view = new View(model, this.canvas);
		this.listen();
		this.changed();
	}

	changed() {
		const {view, model} = this;
		if (view.hasFrames) {
			const nr = 2 ** view.level;
			document.getElementById("scale").textContent =
				`a cell is ${count(nr, "frame")}, ${roundSize(nr * model.pageSize)}`;
		}
		view.draw();
	}

	listen() {
		const {canvas, view} = this;
		canvas.addEventListener("pointermove", (event) => this.point(event));
		canvas.addEventListener("pointerleave", () => this.point(null));
		canvas.addEventListener("click", (event) => this.point(event)); /* a tap of a finger */
		canvas.addEventListener("dblclick", (event) => this.zoom(-2, ...this.place(event)));
		canvas.addEventListener("wheel", (event) => this.wheel(event), {passive: false});
		document.getElementById("in").onclick = () => this.zoom(-1);
		document.getElementById("out").onclick = () => this.zoom(1);
		document.getElementById("whole").onclick = () => this.whole();
		document.getElementById("bar").addEventListener("submit", (event) => {
			event.preventDefault();
			this.find(this.search.value.trim());
		});
		window.addEventListener("keydown", (event) => this.key(event));
		new ResizeObserver(() => view.draw()).observe(canvas);
		matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.draw());
	}

	/**
	 * Where an event is, in the coordinates of the drawing.
	 *
	 * @returns {[number, number]}
	 */
	place(event) {
		const box = this.canvas.getBoundingClientRect();
		const scale = this.model.layout.width / box.width;
		return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
	}

	zoom(step, x, y) {
		const {view} = this;
		if (!view.hasFrames)
			return;
		if (x === undefined) {
			const mark = view.marked && view.marked.pfn >= 0 && view.where(view.marked.pfn);
			[x, y] = mark && mark[2] ? mark : [view.x + 1, (view.top + view.bottom) / 2];
		}
		view.zoom(view.level + step, x, y);
		this.changed();
	}

	whole() {
		const {view} = this;
		this.pinned = false;
		view.chosen = view.marked = null;
		this.found.textContent = "";
		if (view.hasFrames) {
			view.setLevel(this.model.shift);
			view.scroll = 0;
		}
		this.changed();
	}

	wheel(event) {
		const {view} = this, [x, y] = this.place(event);
		if (!view.hasFrames || x < view.x)
			return;
		if (event.ctrlKey)
			this.zoom(Math.sign(event.deltaY), x, y);
		else if (view.mostScroll)
			view.scrollTo(view.scroll + event.deltaY);
		else
			return; /* the browser scrolls the page */
		event.preventDefault();
		this.point(event);
	}

	key(event) {
		if (event.key === "Escape") {
			this.search.blur();
			this.whole();
		}
		if (event.target === this.search || event.ctrlKey || event.altKey || event.metaKey)
			return;
		const {view} = this, page = view.hasFrames ? view.bottom - view.top : 0;
		const moves = {ArrowDown: view.pitch, ArrowUp: -view.pitch, PageDown: page * 0.9,
			PageUp: -page * 0.9, Home: -Infinity, End: Infinity};
		if (event.key in moves && view.mostScroll)
			view.scrollTo(view.scroll + moves[event.key]);
		else if (event.key === "+" || event.key === "=")
			this.zoom(-1);
		else if (event.key === "-")
			this.zoom(1);
		else if (event.key === "0")
			this.whole();
		else if (event.key === "/")
			this.search.focus();
		else
			return;
		event.preventDefault();
	}

	point(event) {
		const [text, band] = event ? this.describePlace(...this.place(event)) : ["", null];
		this.tip.hidden = !text;
		this.tip.textContent = text;
		if (text) {
			const stage = this.canvas.getBoundingClientRect(), width = this.tip.offsetWidth;
			const x = event.clientX - stage.left, y = event.clientY - stage.top;
			/* On a phone the stage is wider than the screen: stay within what is seen of it. */
			const seen = Math.min(stage.right, innerWidth) - stage.left;
			const left = x + 16 + width > seen ? Math.min(x - 16, seen) - width : x + 16;
			const above = event.clientY + 16 + this.tip.offsetHeight > innerHeight;
			this.tip.style.left = Math.max(0, -stage.left, left) + "px";
			this.tip.style.top = (above ? y - 16 - this.tip.offsetHeight : y + 16) + "px";
		}
		if (this.pinned)
			return;
		const before = this.view.chosen && this.view.chosen.band;
		this.view.chosen = band === null ? null : {band};
		if (before !== (band ?? undefined))
			this.view.draw();
	}

	/* The text for the tip at a place, and the band that it is about. */
	describePlace(x, y) {
		const {view, model} = this, [left, width] = model.layout.body;
		const pfn = view.pfnAt(x, y);
		if (pfn >= 0)
			return [this.describeCell(pfn), null];
		const band = model.layout.spans.findIndex(([top, bottom]) => y >= top && y <= bottom);
		if (x < left + width && x > model.layout.labels && band >= 0)
			return [this.describeBand(band, y), band];
		const context = this.canvas.getContext("2d");
		context.save();
		context.resetTransform();
		const link = view.links.findLast((each) => context.isPointInPath(each.path, x, y));
		context.restore();
		return link ? [this.describeLink(link), link.band] : ["", null];
	}

	describeLink(link) {
		const {model} = this, band = model.bands[link.band];
		const [first, last] = link.rows;
		const part = link.parts > 1 ? `part ${link.part + 1} of ${link.parts} of ` : "";
		const kind = model.isDiff ? `: ${model.kinds[link.kind][1]}` : "";
		const were = link.isPast ? "that were " : "";
		return `${part}${band.name}${kind}\n${count(link.nr, "page")}, ${roundSize(link.nr * model.pageSize)}`
			+ ` ${were}in frames from ${model.address(first.first)} to ${model.address(last.first + last.nr)}`;
	}

	describeBand(number, y) {
		const {model} = this, band = model.bands[number];
		const [top, bottom] = model.layout.spans[number];
		let offset = Math.min(Math.floor((y - top) / (bottom - top) * band.nrPages), band.nrPages - 1);
		let vma = band.first;
		while (offset >= model.vmas[vma].end - model.vmas[vma].first) {
			offset -= model.vmas[vma].end - model.vmas[vma].first;
			vma++;
		}
		const lines = band.nr > 1 ? [`${band.name}: ${count(band.nr, "mapping")}`] : [];
		return [...lines, ...this.describePage(model.vmas[vma].first + offset, vma)].join("\n");
	}

	/* A page: its addresses, its mapping, its flags, and the owners of its frame. */
	describePage(page, vma, offset = 0) {
		const {model} = this, mapping = model.vmas[vma];
		const where = `${mapping.perms} ${mapping.path || "[anonymous]"}`;
		const lines = [`${model.address(mapping.first)}-${model.address(mapping.end)} ${where}`];
		const extent = model.findExtent(page, vma);
		const address = model.address(page, offset);
		if (extent < 0)
			return [`virtual ${address}`, "no page is there", ...lines];
		if (model.isDiff)
			return [`virtual ${address}`, ...this.describeChange(extent, page, offset), ...lines];
		const [kind, flags, bits, cause, mapcount] = model.states[model.state[extent]];
		const isThere = model.index[extent] >= 0;
		const pfn = isThere ? model.pfnOf(model.index[extent] + page - model.page[extent]) : -1;
		const [slug, name] = kind === null ? ["", ""] : model.kinds[kind];
		const place = isThere ? `physical ${model.address(pfn, offset)}  (${model.frame(pfn)})`
			: cause || (slug === "zero" ? "the zero page, which all processes share" : "outside of RAM");
		lines.unshift(`virtual ${address}`, place);
		lines.push(`extent: ${count(model.nr[extent], "page")}, ${name || "not present"}`);
		if (flags !== null)
			lines.push(`flags: ${flags || "none"}`);
		lines.push(`pagemap: ${bits}`);
		if (mapcount !== null)
			lines.push(`owners: this process; mapped ${count(mapcount, "time")} in all`);
		else if (isThere)
			lines.push(/exclusive/.test(bits) ? "owners: this process only"
				: "owners: this process, maybe others too");
		return lines;
	}

	/* What became of a page: the change, and where the page was and is. */
	describeChange(extent, page, offset) {
		const {model} = this, state = model.states[model.state[extent]];
		const [, pastKind, change, text, was, is] = state;
		const place = (index) => {
			if (index < 0)
				return "in a frame outside of RAM";
			const pfn = model.pfnOf(index + page - model.page[extent]);
			return `physical ${model.address(pfn, offset)}  (${model.frame(pfn)})`;
		};
		const past = (pastKind === null ? model.index : model.past)[extent];
		return [`${change}: ${text}`, `before: ${was || place(past)}`,
			`now: ${is || place(model.index[extent])}`,
			`the same change: ${count(model.nr[extent], "page")}`];
	}

	describeCell(pfn) {
		const {model, view} = this, nr = 2 ** view.level;
		const kinds = new Map(), vmas = new Map(), pages = [];
		model.eachRam(pfn, pfn + nr, (first, end) => {
			model.eachRun(first, end, (_, length, kind) =>
				kinds.set(kind, (kinds.get(kind) || 0) + length));
			model.eachPiece(first, end, (piece, index, length) => {
				const extent = model.pieceExtent[piece], vma = model.vma[extent];
				vmas.set(vma, (vmas.get(vma) || 0) + length);
				pages.push([model.pageOfPiece(piece, index), vma]);
			});
		});
		if (nr === 1 && pages.length)
			return pages.map((page) => this.describePage(...page).join("\n")).join("\n\n");
		const most = (map) => [...map].sort((one, other) => other[1] - one[1]);
		const lines = [nr === 1 ? `physical ${model.address(pfn)}  (${model.frame(pfn)})`
			: `physical ${model.address(pfn)}-${model.address(pfn + nr)}`];
		for (const [kind, length] of most(kinds))
			lines.push(nr === 1 ? model.kinds[kind][1] : `${model.kinds[kind][1]}: `
				+ `${count(length, "frame")}, ${(100 * length / nr).toFixed(1)}%`);
		if (!kinds.size)
			lines.push("no RAM");
		for (const [vma, length] of most(vmas).slice(0, MAX_LISTED))
			lines.push(`${model.vmas[vma].name} ${model.address(model.vmas[vma].first)}: `
				+ count(length, "page"));
		if (vmas.size > MAX_LISTED)
			lines.push(`… and ${count(vmas.size - MAX_LISTED, "mapping")} more`);
		return lines.join("\n");
	}

	/* Find what was typed, show where it is, and describe it. */
	find(words) {
		const {view} = this;
		this.pinned = false;
		view.chosen = view.marked = null;
		const physical = words.match(/^p(?:addr)?[\s:=]*(0x[0-9a-f]+)$/i);
		const frame = words.match(/^pfn[\s:=]*(0x[0-9a-f]+|\d+)$/i);
		if (!words)
			this.found.textContent = "";
		else if (frame && /^\d\d+$/.test(frame[1])) /* as on the command line */
			this.found.textContent = `${words} may be pfn:0x${frame[1]} or, as decimal, `
				+ this.model.frame(Number(frame[1]));
		else if (frame)
			this.findFrame(Number(frame[1]), 0);
		else if (physical)
			this.findAddress(BigInt(physical[1]), true);
		else if (/^0x[0-9a-f]+$/i.test(words))
			this.findAddress(BigInt(words), false);
		else
			this.findName(words.toLowerCase());
		this.changed();
	}

	findAddress(address, isPhysical) {
		const {model, view} = this;
		const page = model.pageOf(address), offset = Number(address % BigInt(model.pageSize));
		const vma = isPhysical ? -1 : model.findVma(page);
		if (vma < 0) {
			this.findFrame(page, offset, isPhysical);
			return;
		}
		const extent = model.findExtent(page, vma);
		const isThere = extent >= 0 && model.index[extent] >= 0;
		const pfn = isThere ? model.pfnOf(model.index[extent] + page - model.page[extent]) : -1;
		const hasPast = extent >= 0 && model.past[extent] >= 0;
		const past = hasPast ? model.pfnOf(model.past[extent] + page - model.page[extent]) : -1;
		view.marked = {pfn, past, page, vma};
		if (isThere && hasPast) /* both must be seen, however far apart they are */
			view.setLevel(model.shift);
		else if (isThere || hasPast)
			view.show(isThere ? pfn : past);
		this.found.textContent = this.describePage(page, vma, offset).join("  ·  ");
	}

	findFrame(pfn, offset, isPhysical = true) {
		const {model, view} = this, index = model.indexOf(pfn);
		if (index < 0) {
			this.found.textContent = isPhysical ? "there is no RAM" : "nothing is mapped there, and there is no RAM";
			return;
		}
		let page = -1, vma = -1;
		const texts = [];
		model.eachPiece(index, index + 1, (piece) => {
			const extent = model.pieceExtent[piece];
			vma = model.vma[extent];
			page = model.pageOfPiece(piece, index);
			texts.push(...this.describePage(page, vma, offset));
		});
		view.marked = {pfn, page, vma};
		view.show(pfn);
		this.found.textContent = (texts.length ? texts : this.describeCell(pfn).split("\n")).join("  ·  ");
	}

	findName(words) {
		const {model, view} = this;
		const all = model.vmas.map((_, i) => i).filter((i) => model.vmas[i].name.toLowerCase().includes(words));
		if (!all.length) {
			this.found.textContent = "no mapping has that name; write an address as 0x…";
			return;
		}
		/* A repeated search finds the next mapping of that name. */
		this.last = this.lastWords === words ? (this.last + 1) % all.length : 0;
		this.lastWords = words;
		const vma = all[this.last], {first, end, firstExtent, endExtent} = model.vmas[vma];
		let nr = 0;
		for (let i = firstExtent; i < endExtent; i++)
			nr += model.index[i] >= 0 ? model.nr[i] : 0;
		view.chosen = {vma};
		this.pinned = true;
		view.marked = {pfn: -1, page: first, vma};
		this.found.textContent = `${this.last + 1} of ${all.length}: ${model.vmas[vma].name}, `
			+ `${model.address(first)}-${model.address(end)} ${model.vmas[vma].perms}, `
			+ `${roundSize(nr * model.pageSize)} of ${roundSize((end - first) * model.pageSize)} in frames`;
	}
}

async function start() {
	try {
		const [header, columns] = await unpack(document.getElementById("data").textContent);
		Object.assign(window, {physview: new Page(new Model(header, columns))});
		document.documentElement.dataset.state = "ready";
	} catch (error) {
		document.documentElement.dataset.state = "failed";
		document.getElementById("found").textContent = `the page cannot be drawn: ${error.message}`;
		throw error;
	}
}
start();
