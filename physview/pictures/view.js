/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Draws frames and connectors on the canvas at any zoom, in the coordinates of the drawing below the
 * canvas. All positions and constants of that drawing come from model.layout. A level is the number
 * of frames in a cell, as a power of two.
 */

const NOTHING = 255; /* a stripe that is left empty */
/* Opacity of cells and connectors that do not belong to what is chosen. */
const DIM_CELL = 0.22, DIM_LINK = 0.06;
const ROW_GAP = 1e-6; /* a row that is seen by less than this is not drawn */

class View {
	/**
	 * @param {Model} model
	 * @param {HTMLCanvasElement} canvas
	 */
	constructor(model, canvas) {
		this.model = model;
		this.canvas = canvas;
		this.layout = model.layout;
		this.bundles = new Bundles(model);
		this.level = model.shift || 0;
		this.scroll = 0;
		/** @type {{band?: number, vma?: number} | null} */
		this.chosen = null; /* what is drawn at full strength */
		/** @type {{pfn: number, past?: number, page: number, vma: number} | null} */
		this.marked = null; /* what was found */
		/** @type {any[]} */
		this.links = [];
		/** @type {Record<string, any>} */
		this.known = {};
		this.isAsked = false;
		/** @type {(name: string) => string} */
		this.colour = () => "";
		const {frames} = this.layout;
		if (frames) {
			this.x = frames.x;
			this.top = frames.top;
			this.bottom = frames.bottom;
			this.cell = frames.cell;
			this.pitch = frames.pitch;
			this.perRow = frames.per_row;
			this.blocks = this.makeBlocks(this.level);
		}
	}

	get hasFrames() {
		return this.layout.frames !== null;
	}

	get isWhole() {
		return this.level === this.model.shift;
	}

	/* Contiguous rows that have RAM: first row, how many, where, and the hole before them. */
	makeBlocks(level) {
		const perRow = this.perRow * 2 ** level, blocks = [], {holes} = this.layout.frames;
		this.model.ram.forEach(([first, end], i) => {
			const low = Math.floor(first / perRow), high = Math.ceil(end / perRow);
			const last = blocks[blocks.length - 1];
			if (last && low <= last.first + last.nr)
				last.nr = Math.max(last.nr, high - last.first);
			else
				blocks.push({first: low, nr: high - low, hole: holes.names[i], y: 0});
		});
		let y = 0;
		for (const block of blocks) {
			block.y = y += block.hole ? holes.height : 0;
			y += block.nr * this.pitch;
		}
		this.height = y;
		return blocks;
	}

	get mostScroll() {
		return Math.max(0, this.height - (this.bottom - this.top));
	}

	scrollTo(y) {
		this.scroll = Math.min(Math.max(0, y), this.mostScroll);
		this.draw();
	}

	/**
	 * Left and top of a frame's cell, and whether it is seen.
	 *
	 * @param {number} pfn
	 * @returns {[number, number, boolean]}
	 */
	where(pfn) {
		const cell = Math.floor(pfn / 2 ** this.level), row = Math.floor(cell / this.perRow);
		const block = this.blocks.find((each) => row < each.first + each.nr);
		const y = this.top + block.y + (row - block.first) * this.pitch - this.scroll;
		return [this.x + (cell % this.perRow) * this.cell, y, y >= this.top - 1 && y < this.bottom];
	}

	/* The first frame of the cell at a place, or -1. The cell may have no RAM. */
	pfnAt(x, y) {
		if (!this.hasFrames || y < this.top || y > this.bottom)
			return -1;
		const column = Math.floor((x - this.x) / this.cell);
		const at = y - this.top + this.scroll;
		const block = this.blocks.find((each) => at < each.y + each.nr * this.pitch);
		if (column < 0 || column >= this.perRow || !block || at < block.y)
			return -1;
		const row = block.first + Math.floor((at - block.y) / this.pitch);
		return (row * this.perRow + column) * 2 ** this.level;
	}

	zoom(level, x, y) {
		const pfn = Math.max(0, this.pfnAt(x, y));
		const before = this.hasFrames && this.pfnAt(x, y) >= 0 ? y : this.top;
		this.setLevel(level);
		this.scrollTo(this.scroll + this.where(pfn)[1] - before);
	}

	setLevel(level) {
		this.level = Math.min(Math.max(0, level), this.model.shift);
		this.blocks = this.makeBlocks(this.level);
		this.scroll = Math.min(this.scroll, this.mostScroll);
	}

	show(pfn) {
		this.setLevel(0);
		this.scrollTo(this.scroll + this.where(pfn)[1] - (this.top + this.bottom) / 2);
	}

	/* Rows that are seen: first frame and frames, top, and place in their block. */
	visibleRows() {
		const rows = [], perRow = this.perRow * 2 ** this.level;
		for (const block of this.blocks) {
			const top = this.scroll - block.y, room = this.bottom - this.top;
			const first = Math.max(0, Math.floor(top / this.pitch));
			const end = Math.min(block.nr, Math.ceil((top + room) / this.pitch - ROW_GAP));
			for (let i = first; i < end; i++)
				rows.push({
					first: (block.first + i) * perRow,
					nr: perRow,
					y: this.top + block.y + i * this.pitch - this.scroll,
					number: block.first + i,
					inBlock: i,
					toEnd: block.nr - i,
				});
		}
		return rows;
	}

	isLit(extent) {
		const vma = this.model.vma[extent];
		return this.chosen.vma === vma || this.chosen.band === this.model.bandOf[vma];
	}

	draw() {
		if (this.isAsked)
			return;
		this.isAsked = true;
		requestAnimationFrame(() => {
			this.isAsked = false;
			this.drawNow();
		});
	}

	drawNow() {
		const box = this.canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
		const width = Math.round(box.width * ratio), height = Math.round(box.height * ratio);
		if (this.canvas.width !== width || this.canvas.height !== height) {
			this.canvas.width = width;
			this.canvas.height = height;
		}
		const style = getComputedStyle(document.documentElement);
		this.colour = (name) => style.getPropertyValue("--" + name).trim();
		const context = this.canvas.getContext("2d");
		const scale = width / this.layout.width;
		context.setTransform(scale, 0, 0, scale, 0, 0);
		context.clearRect(0, 0, this.layout.width, this.layout.height);
		this.dimBands(context);
		if (!this.hasFrames)
			return;
		const rows = this.visibleRows();
		this.drawLinks(context, rows);
		context.save();
		context.beginPath();
		context.rect(this.x - 4, this.top - 2, this.layout.width, this.bottom - this.top + 4);
		context.clip();
		this.drawCells(context, rows);
		this.drawLabels(context, rows);
		context.restore();
		this.drawMark(context);
	}

	/* Frames of each kind in each cell of a row. */
	countRow(row) {
		const {kinds, runStart, runKind} = this.model, perCell = 2 ** this.level;
		const counts = new Float64Array(this.perRow * kinds.length);
		this.model.eachRam(row.first, row.first + row.nr, (first, end, pfn) => {
			const shift = pfn - first - row.first;
			let run = firstWhere(0, runKind.length, (i) => runStart[i + 1] > first);
			for (let at = first; at < end;) {
				const cell = Math.floor((at + shift) / perCell);
				const next = Math.min(end, runStart[run + 1], (cell + 1) * perCell - shift);
				counts[cell * kinds.length + runKind[run]] += next - at;
				at = next;
				if (at === runStart[run + 1])
					run++;
			}
		});
		return counts;
	}

	/* Which cells of a row have frames that belong to what is chosen. */
	litCells(row) {
		const perCell = 2 ** this.level, lit = new Uint8Array(this.perRow);
		this.model.eachRam(row.first, row.first + row.nr, (first, end, pfn) => {
			const shift = pfn - first - row.first;
			this.model.eachPiece(first, end, (piece, index, nr) => {
				if (!this.isLit(this.model.pieceExtent[piece]))
					return;
				const low = Math.floor((index + shift) / perCell);
				lit.fill(1, low, Math.floor((index + shift + nr - 1) / perCell) + 1);
			});
		});
		return lit;
	}

	/* The result of make(), made again only if level or scroll changed since. */
	remember(name, make) {
		const key = `${this.level} ${this.scroll}`;
		if (this.known.key !== key)
			this.known = {key};
		return this.known[name] ??= make();
	}

	/*
	 * A row of cells as stripes by shares: the index of a kind for each stripe, or NOTHING. This is
	 * stripes() of shapes.py, for the counts of countRow().
	 */
	stripes(counts) {
		const {kinds} = this.model, {stripes: units, least} = this.layout.frames;
		const perCell = 2 ** this.level, codes = new Uint8Array(this.perRow * units).fill(NOTHING);
		const exact = new Float64Array(kinds.length), nr = new Int32Array(kinds.length);
		const low = new Int32Array(kinds.length);
		for (let cell = 0; cell < this.perRow; cell++) {
			const here = counts.subarray(cell * kinds.length, (cell + 1) * kinds.length);
			const isShown = (kind) => kinds[kind][2] && here[kind] > 0;
			const nrShown = here.reduce((sum, _, kind) => sum + (isShown(kind) ? 1 : 0), 0);
			const atLeast = nrShown * least > units ? 1 : least;
			for (let kind = 0; kind < kinds.length; kind++) {
				exact[kind] = here[kind] * units / perCell;
				low[kind] = isShown(kind) ? atLeast : 0;
				nr[kind] = Math.max(Math.floor(exact[kind]), low[kind]);
			}
			const sum = (list) => list.reduce((one, other) => one + other, 0);
			let missing = Math.max(Math.ceil(sum(exact) - 1e-9), sum(low)) - sum(nr);
			/* The largest remainder gets one; the kind with the most above its share gives one. */
			for (; missing > 0; missing--)
				nr[largest(kinds.length, (kind) => exact[kind] > 0 ? exact[kind] - nr[kind] : -Infinity)]++;
			for (; missing < 0; missing++)
				nr[largest(kinds.length, (kind) => nr[kind] > low[kind] ? nr[kind] - exact[kind] : -Infinity)]--;
			let at = cell * units;
			for (let kind = 0; kind < kinds.length; kind++)
				codes.fill(kind, at, at += nr[kind]);
		}
		return codes;
	}

	drawCells(context, rows) {
		const {kinds} = this.model, {stripes: units, gap} = this.layout.frames;
		const width = this.cell / units;
		const rects = kinds.map(() => [[], []]);
		const codes = this.remember("stripes", () => rows.map((row) => this.stripes(this.countRow(row))));
		rows.forEach((row, number) => {
			const mine = codes[number], lit = this.chosen && this.litCells(row);
			const isDim = (at) => lit && !lit[Math.floor(at / units)] ? 1 : 0;
			for (let at = 0, end; at < mine.length; at = end) {
				const kind = mine[at], dim = isDim(at);
				for (end = at + 1; end < mine.length && mine[end] === kind && isDim(end) === dim;)
					end++;
				if (kind !== NOTHING)
					rects[kind][dim].push(this.x + at * width, row.y, (end - at) * width);
			}
		});
		rects.forEach((both, kind) => {
			context.fillStyle = this.colour(kinds[kind][0]);
			both.forEach((list, dim) => {
				context.globalAlpha = dim ? DIM_CELL : 1;
				for (let i = 0; i < list.length; i += 3) /* a bit wider, so that no seam is seen */
					context.fillRect(list[i], list[i + 1], list[i + 2] + 0.05, this.pitch - gap);
			});
		});
		context.globalAlpha = 1;
	}

	/* Addresses beside the rows, and names of holes. */
	drawLabels(context, rows) {
		const {labels, addresses, holes} = this.layout.frames;
		const font = getComputedStyle(document.body).fontFamily;
		context.fillStyle = this.colour("muted");
		const write = (text, x, y, size) => {
			context.font = `${size}px ${font}`;
			context.fillText(text, x, y);
		};
		if (this.isWhole) {
			for (const [x, y, text, size] of labels)
				write(text, x, y, size);
			return;
		}
		const half = addresses.step / 2;
		for (const row of rows)
			if (row.inBlock === 0 || (row.number % addresses.step === 0 && row.inBlock >= half
				&& row.toEnd >= half))
				write(this.model.address(row.first), addresses.x, row.y + addresses.baseline,
					addresses.size);
		for (const block of this.blocks)
			if (block.hole)
				write(block.hole, this.x, this.top + block.y - this.scroll - holes.baseline,
					holes.size);
	}

	drawLinks(context, rows) {
		this.links = [];
		if (!this.model.bands.length || !rows.length)
			return;
		const {parts: finest, thinnest, opacity, ranks} = this.layout.links;
		const {links, nrParts, nrRows} = this.remember("links", () => this.bundles.bundle(rows));
		const begun = new Map(), filled = new Map();
		for (const link of links) {
			const band = this.model.bands[link.band];
			const [top, bottom] = this.layout.spans[link.band];
			const parts = Math.min(nrParts, band.parts);
			link.isPast = this.model.kinds[link.kind][4];
			const at = (link.band * finest + link.part) * 2 + (link.isPast ? 1 : 0);
			const perPage = (bottom - top) / band.nrPages;
			const start = top + (link.part * band.nrPages / parts + (begun.get(at) || 0)) * perPage;
			const last = rows[Math.min(link.row + nrRows, rows.length) - 1];
			const perFrame = (last.y + this.pitch - rows[link.row].y) / (nrRows * last.nr);
			const end = rows[link.row].y + (filled.get(link.row) || 0) * perFrame;
			begun.set(at, (begun.get(at) || 0) + link.nr);
			filled.set(link.row, (filled.get(link.row) || 0) + link.nr);
			link.path = this.ribbon(start, Math.max(link.nr * perPage, thinnest), end,
				Math.max(link.nr * perFrame, thinnest));
			link.rows = [rows[link.row], last];
			link.parts = parts;
			this.links.push(link);
		}
		this.links.sort((one, other) => ranks[one.kind] - ranks[other.kind]);
		const band = this.chosen && (this.chosen.band ?? this.model.bandOf[this.chosen.vma]);
		for (const link of this.links) {
			context.globalAlpha = this.chosen && link.band !== band ? DIM_LINK : opacity;
			context.fillStyle = this.colour(this.model.kinds[link.kind][0]);
			context.fill(link.path);
		}
		context.globalAlpha = 1;
	}

	ribbon(start, height, end, endHeight) {
		const {left: x, right: other} = this.layout.links;
		const middle = (x + other) / 2, path = new Path2D();
		path.moveTo(x, start);
		path.bezierCurveTo(middle, start, middle, end, other, end);
		path.lineTo(other, end + endHeight);
		path.bezierCurveTo(middle, end + endHeight, middle, start + height, x, start + height);
		path.closePath();
		return path;
	}

	/*
	 * Dim the bands that are not chosen, and if a mapping is chosen, the rest of its band: the bands
	 * are below the canvas, so paper is drawn over them.
	 */
	dimBands(context) {
		if (!this.chosen)
			return;
		const {model} = this, {band, vma} = this.chosen;
		const [left, width] = this.layout.body, from = this.layout.labels;
		context.fillStyle = this.colour("paper");
		context.globalAlpha = 1 - DIM_CELL;
		const mine = band ?? model.bandOf[vma];
		this.layout.spans.forEach(([top, bottom], at) => {
			if (at !== mine)
				context.fillRect(from, top, left + width - from, bottom - top);
		});
		if (vma !== undefined) {
			const [top, bottom] = this.layout.spans[mine], {first, end} = model.vmas[vma];
			const start = Math.max(top, this.pageY(first, vma) - 1);
			const stop = Math.min(bottom, this.pageY(end - 1, vma) + 1);
			context.fillRect(left, top, width, start - top);
			context.fillRect(left, stop, width, bottom - stop);
		}
		context.globalAlpha = 1;
	}

	/* How far down in the drawing a page is. */
	pageY(page, vma) {
		const band = this.model.bandOf[vma], [top, bottom] = this.layout.spans[band];
		const {nrPages} = this.model.bands[band];
		return top + (this.model.offset(page, vma) + 0.5) * (bottom - top) / nrPages;
	}

	drawMark(context) {
		if (!this.marked)
			return;
		const {pfn, past, page, vma} = this.marked;
		context.strokeStyle = context.fillStyle = this.colour("ink");
		context.lineWidth = 1.5;
		const [left, width] = this.layout.body;
		if (vma >= 0)
			context.fillRect(left - 4, this.pageY(page, vma) - 0.75, width + 8, 1.5);
		this.drawFrameMark(context, pfn, page, vma);
		context.setLineDash([4, 3]);
		this.drawFrameMark(context, past ?? -1, page, vma);
		context.setLineDash([]);
	}

	/* A rectangle around the cell of a frame, and a line to it from its page. */
	drawFrameMark(context, pfn, page, vma) {
		const [left, width] = this.layout.body;
		if (pfn < 0)
			return;
		const [x, y, isSeen] = this.where(pfn);
		if (!isSeen)
			return;
		context.strokeRect(x - 1.5, y - 1.5, this.cell + 3, this.pitch + 2);
		if (vma < 0)
			return;
		const middle = (left + width + this.x) / 2, from = this.pageY(page, vma);
		context.beginPath();
		context.moveTo(left + width + 4, from);
		context.bezierCurveTo(middle, from, middle, y + this.pitch / 2, x - 2, y + this.pitch / 2);
		context.stroke();
	}
}

/* The first i in 0 .. nr with the largest score(i). */
function largest(nr, score) {
	let best = 0, most = -Infinity;
	for (let i = 0; i < nr; i++) {
		const value = score(i);
		if (value > most)
			[best, most] = [i, value];
	}
	return best;
}

/**
 * @param {number} bytes
 * @returns {string}
 */
function roundSize(bytes) {
	/** @type {[number, string][]} */
	const units = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"]];
	for (const [unit, name] of units)
		if (bytes >= unit)
			return +(bytes / unit).toFixed(2) + " " + name;
	return bytes + (bytes ? " bytes" : "");
}
