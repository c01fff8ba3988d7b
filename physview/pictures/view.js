/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Draws frames and connectors on the canvas, at any zoom, in the coordinates of the drawing that
 * lies below it. A level is how many frames a cell has, as a power of two.
 */

const COLUMNS = 128;
const MAX_LINKS = 1200;
const LINK_STEPS = [[32, 1], [16, 1], [16, 2], [8, 2], [8, 4], [4, 4], [4, 8], [2, 8], [1, 8]];
const LINK_OPACITY = 0.55;
const THINNEST = 0.8;
const LEAST = 0.25; /* of a cell, for what the picture is about; half of it where that is much */

class View {
	constructor(model, canvas) {
		this.model = model;
		this.canvas = canvas;
		this.layout = model.layout;
		this.level = model.shift || 0;
		this.scroll = 0;
		this.chosen = null; /* {band} or {vma}: what is lit */
		this.marked = null; /* {pfn, past, page, vma}: what was found */
		this.links = [];
		this.known = {};
		if (this.layout.place) {
			[this.x, this.cell, this.pitch, this.bottom] = this.layout.place;
			this.top = this.layout.top;
			this.blocks = this.makeBlocks(this.level);
		}
	}

	get hasFrames() {
		return Boolean(this.layout.place);
	}

	/* Rows in a row that have RAM: first row, how many, where, and what is missing before. */
	makeBlocks(level) {
		const perRow = COLUMNS * 2 ** level, blocks = [];
		this.model.ram.forEach(([first, end], i) => {
			const low = Math.floor(first / perRow), high = Math.ceil(end / perRow);
			const last = blocks[blocks.length - 1];
			if (last && low <= last.first + last.nr)
				last.nr = Math.max(last.nr, high - last.first);
			else
				blocks.push({first: low, nr: high - low, hole: this.model.holes[i]});
		});
		let y = 0;
		for (const block of blocks) {
			block.y = y += block.hole ? this.layout.hole : 0;
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

	/* Where the cell of a frame is: its left and top, and whether that is on the canvas. */
	where(pfn) {
		const cell = Math.floor(pfn / 2 ** this.level), row = Math.floor(cell / COLUMNS);
		const block = this.blocks.find((each) => row < each.first + each.nr);
		const y = this.top + block.y + (row - block.first) * this.pitch - this.scroll;
		return [this.x + (cell % COLUMNS) * this.cell, y, y >= this.top - 1 && y < this.bottom];
	}

	/* The first frame of the cell at a place, or -1; it may have no RAM. */
	pfnAt(x, y) {
		if (!this.hasFrames || y < this.top || y > this.bottom)
			return -1;
		const column = Math.floor((x - this.x) / this.cell);
		const at = y - this.top + this.scroll;
		const block = this.blocks.find((each) => at < each.y + each.nr * this.pitch);
		if (column < 0 || column >= COLUMNS || !block || at < block.y)
			return -1;
		const row = block.first + Math.floor((at - block.y) / this.pitch);
		return (row * COLUMNS + column) * 2 ** this.level;
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

	/* Rows that can be seen: the first frame, and where. */
	visibleRows() {
		const rows = [], perRow = COLUMNS * 2 ** this.level;
		for (const block of this.blocks) {
			const top = this.scroll - block.y, room = this.bottom - this.top;
			const first = Math.max(0, Math.floor(top / this.pitch));
			const end = Math.min(block.nr, Math.ceil((top + room) / this.pitch - 1e-6));
			for (let i = first; i < end; i++)
				rows.push({
					first: (block.first + i) * perRow,
					nr: perRow,
					y: this.top + block.y + i * this.pitch - this.scroll,
					number: block.first + i,
					isFirst: i === 0,
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
		if (!this.hasFrames)
			return;
		const rows = this.visibleRows();
		this.drawLinks(context, rows);
		context.save();
		context.beginPath();
		context.rect(this.x - 4, this.top - 2, this.layout.width, this.bottom - this.top + 4);
		context.clip();
		this.drawCells(context, rows);
		this.drawWords(context, rows);
		context.restore();
		this.drawMark(context);
	}

	/* What each cell of a row has: frames of each kind. */
	countRow(row) {
		const {kinds, runStart, runKind} = this.model, perCell = 2 ** this.level;
		const counts = new Float64Array(COLUMNS * kinds.length);
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

	/* Which cells of a row have frames of what is chosen. */
	litCells(row) {
		const perCell = 2 ** this.level, lit = new Uint8Array(COLUMNS);
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

	/* What make() makes of what is seen; made again only when something else is. */
	remember(name, make) {
		const key = `${this.level} ${this.scroll}`;
		if (this.known.key !== key)
			this.known = {key};
		return this.known[name] ??= make();
	}

	drawCells(context, rows) {
		const {kinds} = this.model, perCell = 2 ** this.level;
		const height = this.pitch - Math.min(1, this.pitch / 5);
		const stripes = kinds.map(() => [[], []]);
		const counted = this.remember("counts", () => rows.map((row) => this.countRow(row)));
		rows.forEach((row, number) => {
			const counts = counted[number], lit = this.chosen && this.litCells(row);
			for (let cell = 0; cell < COLUMNS; cell++) {
				let x = this.x + cell * this.cell;
				const end = x + this.cell, isDim = lit && !lit[cell] ? 1 : 0;
				let nrShown = 0;
				for (let kind = 0; kind < kinds.length; kind++)
					nrShown += kinds[kind][2] && counts[cell * kinds.length + kind] ? 1 : 0;
				const least = nrShown * LEAST > 1 ? LEAST / 2 : LEAST;
				for (let kind = 0; kind < kinds.length && x < end; kind++) {
					const nr = counts[cell * kinds.length + kind];
					if (!nr)
						continue;
					const share = Math.max(nr / perCell, kinds[kind][2] ? least : 0);
					const width = Math.min(share * this.cell, end - x);
					stripes[kind][isDim].push(x, row.y, width);
					x += width;
				}
			}
		});
		stripes.forEach((both, kind) => {
			context.fillStyle = this.colour(kinds[kind][0]);
			both.forEach((list, isDim) => {
				context.globalAlpha = isDim ? 0.22 : 1;
				for (let i = 0; i < list.length; i += 3)
					context.fillRect(list[i], list[i + 1], list[i + 2] + 0.05, height);
			});
		});
		context.globalAlpha = 1;
	}

	/* Addresses beside the rows, and what the holes are. */
	drawWords(context, rows) {
		const step = 2 ** Math.ceil(Math.log2(40 / this.pitch));
		context.font = "11px " + getComputedStyle(document.body).fontFamily;
		context.fillStyle = this.colour("muted");
		const x = this.x + COLUMNS * this.cell + 10;
		const isWhole = this.level === this.model.shift;
		for (const row of rows)
			if (row.isFirst || row.number % step === 0)
				context.fillText(isWhole ? roundSize(row.first * this.model.pageSize)
					: this.model.address(row.first), x, row.y + 9);
		for (const block of this.blocks)
			if (block.hole)
				context.fillText(block.hole, this.x, this.top + block.y - this.scroll - 10);
	}

	/* Bundle what leads to the rows that are seen: pages by band, part, row and kind. */
	bundle(rows) {
		const {model} = this, nrKinds = model.kinds.length, nrPieces = model.pieceIndex.length;
		const {pieceIndex, pieceNr, pieceExtent, piecePart, pieceKind, vma, bandOf} = model;
		const sums = new Map();
		rows.forEach((row, number) => {
			const here = new Float64Array(model.bands.length * 32 * nrKinds);
			model.eachRam(row.first, row.first + row.nr, (first, end) => {
				for (let i = model.pieceAfter(first); i < nrPieces && pieceIndex[i] < end; i++) {
					const nr = Math.min(end, pieceIndex[i] + pieceNr[i]) - Math.max(first, pieceIndex[i]);
					const extent = pieceExtent[i], place = bandOf[vma[extent]] * 32 + piecePart[i];
					if (nr > 0)
						here[place * nrKinds + pieceKind[i]] += nr;
				}
			});
			here.forEach((nr, key) => nr && sums.set(number * here.length + key, nr));
		});
		for (const [nrParts, nrRows] of LINK_STEPS) {
			const found = this.coarsen(sums, nrParts, nrRows);
			if (found.size <= MAX_LINKS || nrParts === 1)
				return [found, nrParts, nrRows];
		}
		return [new Map(), 1, 1];
	}

	coarsen(sums, nrParts, nrRows) {
		const {model} = this, nrKinds = model.kinds.length;
		const found = new Map();
		for (const [key, nr] of sums) {
			const kind = key % nrKinds, rest = Math.floor(key / nrKinds);
			const band = Math.floor(rest / 32) % model.bands.length;
			const {parts} = model.bands[band];
			const part = Math.floor(rest % 32 * Math.min(nrParts, parts) / parts);
			const row = Math.floor(rest / 32 / model.bands.length / nrRows) * nrRows;
			/* Where there are kinds of what was, each has connectors of its own. */
			const place = ((band * 32 + part) * 4096 + row) * 256 + (model.isDiff ? kind : 0);
			const link = found.get(place) || {band, part, row, nr: 0, most: 0, kind};
			link.nr += nr;
			if (nr > link.most)
				[link.most, link.kind] = [nr, kind];
			found.set(place, link);
		}
		return found;
	}

	drawLinks(context, rows) {
		this.links = [];
		if (!this.model.bands.length || !rows.length)
			return;
		const [found, nrParts, nrRows] = this.remember("links", () => this.bundle(rows));
		const begun = new Map(), filled = new Map();
		const places = [...found.keys()].sort((one, other) => one - other);
		for (const place of places) {
			const link = found.get(place), band = this.model.bands[link.band];
			const [top, bottom] = this.layout.spans[link.band];
			const parts = Math.min(nrParts, band.parts);
			link.isPast = this.model.kinds[link.kind][4];
			const at = (link.band * 32 + link.part) * 2 + (link.isPast ? 1 : 0);
			const perPage = (bottom - top) / band.nrPages;
			const start = top + (link.part * band.nrPages / parts + (begun.get(at) || 0)) * perPage;
			const last = rows[Math.min(link.row + nrRows, rows.length) - 1];
			const perFrame = (last.y + this.pitch - rows[link.row].y) / (nrRows * last.nr);
			const end = rows[link.row].y + (filled.get(link.row) || 0) * perFrame;
			begun.set(at, (begun.get(at) || 0) + link.nr);
			filled.set(link.row, (filled.get(link.row) || 0) + link.nr);
			link.path = this.ribbon(start, Math.max(link.nr * perPage, THINNEST), end,
				Math.max(link.nr * perFrame, THINNEST));
			link.rows = [rows[link.row], last];
			link.parts = parts;
			this.links.push(link);
		}
		/* First what stayed, over it where pages were, and over that where they are. */
		const order = (link) => link.kind === 0 ? 0 : link.isPast ? 1 : 2;
		if (this.model.isDiff)
			this.links.sort((one, other) => order(one) - order(other));
		const band = this.chosen && (this.chosen.band ?? this.model.bandOf[this.chosen.vma]);
		for (const link of this.links) {
			context.globalAlpha = this.chosen && link.band !== band ? 0.06 : LINK_OPACITY;
			context.fillStyle = this.colour(this.model.kinds[link.kind][0]);
			context.fill(link.path);
		}
		context.globalAlpha = 1;
	}

	ribbon(start, height, end, endHeight) {
		const x = this.layout.body[0] + this.layout.body[1] + 2, other = this.x - 6;
		const middle = (x + other) / 2, path = new Path2D();
		path.moveTo(x, start);
		path.bezierCurveTo(middle, start, middle, end, other, end);
		path.lineTo(other, end + endHeight);
		path.bezierCurveTo(middle, end + endHeight, middle, start + height, x, start + height);
		path.closePath();
		return path;
	}

	/* Where in the drawing a page is. */
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

	/* A frame around the cell of a frame, and a line from the page that it is of. */
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

function roundSize(bytes) {
	for (const [unit, name] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"]])
		if (bytes >= unit)
			return +(bytes / unit).toFixed(2) + " " + name;
	return bytes + (bytes ? " bytes" : "");
}
