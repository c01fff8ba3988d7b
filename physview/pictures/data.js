/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The data of the page. pack.py writes it: the length of a JSON header, the header, and columns of
 * numbers in planes: the lowest byte of all numbers, then the next byte of all, and so on.
 *
 * An "index" numbers frames without the holes of RAM. A "page" is an address divided by the page
 * size. Both fit into the 53 bits of a number in JavaScript.
 */
"use strict";

/**
 * Positions and constants of the drawing, in its coordinates. layout.py and bands.py decide them.
 *
 * @typedef {object} Layout
 * @property {number} width
 * @property {number} height
 * @property {number} labels The left end of the bands' names.
 * @property {[number, number]} body Left and width of the bands.
 * @property {[number, number][]} spans Top and bottom of each band.
 * @property {FramesLayout | null} frames null if the picture has no frames.
 * @property {LinksLayout} links
 *
 * @typedef {object} FramesLayout
 * @property {number} x
 * @property {number} top
 * @property {number} bottom
 * @property {number} cell Width of a cell.
 * @property {number} pitch From the top of a row to that of the next.
 * @property {number} gap The part of the pitch that is left empty.
 * @property {number} per_row Cells in a row.
 * @property {number} stripes Stripes in a cell.
 * @property {number} least Stripes of a kind that the picture is about, at least; or one if a cell
 *	has too many of these kinds.
 * @property {[number, number, string, number][]} labels x, y, text and size of the text at the
 *	cells of the whole picture.
 * @property {{x: number, baseline: number, size: number, step: number}} addresses
 * @property {{names: string[], height: number, baseline: number, size: number}} holes
 *
 * @typedef {object} LinksLayout
 * @property {number} left
 * @property {number} right
 * @property {number} parts Parts of a band at the finest step, if it has that many pages.
 * @property {[number, number][]} steps Parts of a band, and rows of cells, that a connector
 *	bundles; the first step with few enough connectors is drawn.
 * @property {number} most Connectors that are few enough.
 * @property {number} thinnest
 * @property {number} opacity
 * @property {number[]} ranks For each kind: connectors of higher ranks are drawn over others.
 */

/** @typedef {Record<string, Float64Array>} Columns */

/**
 * @param {string} base64
 * @returns {Promise<[any, Columns]>} The header and the columns.
 */
async function unpack(base64) {
	const text = atob(base64);
	const packed = new Uint8Array(text.length);
	for (let i = 0; i < packed.length; i++)
		packed[i] = text.charCodeAt(i);
	const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
	const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
	const length = new DataView(bytes.buffer).getUint32(0, true);
	const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
	/** @type {Columns} */
	const columns = {};
	let at = 4 + length;
	for (const [name, nr, nrPlanes] of header.columns) {
		const values = new Float64Array(nr);
		for (let plane = 0, weight = 1; plane < nrPlanes; plane++, weight *= 256)
			for (let i = 0; i < nr; i++)
				values[i] += bytes[at++] * weight;
		columns[name] = values;
	}
	return [header, columns];
}

/**
 * The first i in low .. high for which test(i) holds; high if there is none.
 *
 * @param {number} low
 * @param {number} high
 * @param {(i: number) => boolean} test
 */
function firstWhere(low, high, test) {
	while (low < high) {
		const middle = Math.floor((low + high) / 2);
		if (test(middle))
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

class Model {
	constructor(header, columns) {
		/** @type {Layout} */
		this.layout = header.layout;
		/** @type {number} */
		this.pageSize = header.page_size;
		/** @type {number | undefined} */
		this.shift = header.shift; /* frames in a cell of the whole picture, as a power of two */
		/** @type {[slug: string, label: string, isSubject: boolean, hasFrame: boolean, isPast: boolean][]} */
		this.kinds = header.kinds;
		/** @type {[number, number][]} */
		this.ram = header.ram || [];
		/** @type {any[][]} */
		this.states = header.states || [];
		this.isDiff = this.kinds.some((kind) => kind[4]);
		/** @type {number[]} */
		this.bases = []; /* the index of the first frame of each range of RAM */
		this.nrFrames = 0;
		for (const [first, end] of this.ram) {
			this.bases.push(this.nrFrames);
			this.nrFrames += end - first;
		}
		/** @type {any[][]} */
		const vmas = header.vmas || [];
		this.vmas = vmas.map(([start, end, perms, offset, path]) => {
			const first = this.pageOf(BigInt("0x" + start));
			const last = this.pageOf(BigInt("0x" + end));
			return {first, end: last, perms, offset, path, name: path || "anonymous",
				firstExtent: 0, endExtent: 0};
		});
		this.readBands(header.bands || []);
		this.readExtents(columns);
		this.sortPieces();
		this.readRuns(columns);
	}

	pageOf(address) {
		return Number(address / BigInt(this.pageSize));
	}

	/**
	 * The address of a page or frame.
	 *
	 * @param {number} page Its number.
	 * @param {number} offset In bytes, in the page.
	 */
	address(page, offset = 0) {
		return "0x" + (BigInt(page) * BigInt(this.pageSize) + BigInt(offset)).toString(16);
	}

	/** @param {number} pfn */
	frame(pfn) {
		return "pfn:0x" + pfn.toString(16);
	}

	pfnOf(index) {
		const range = firstWhere(0, this.bases.length, (i) => this.bases[i] > index) - 1;
		return this.ram[range][0] + index - this.bases[range];
	}

	/* The index of a frame, or -1 where there is no RAM. */
	indexOf(pfn) {
		const range = firstWhere(0, this.ram.length, (i) => this.ram[i][1] > pfn);
		if (range === this.ram.length || this.ram[range][0] > pfn)
			return -1;
		return this.bases[range] + pfn - this.ram[range][0];
	}

	/* The bands of the drawing: each has one or more mappings, and its pages are counted through. */
	readBands(bands) {
		this.bandOf = new Uint16Array(this.vmas.length);
		this.bandStart = new Float64Array(this.vmas.length);
		this.bands = bands.map(([first, nrVmas, name, parts], number) => {
			let nrPages = 0;
			for (let i = first; i < first + nrVmas; i++) {
				this.bandOf[i] = number;
				this.bandStart[i] = nrPages;
				nrPages += this.vmas[i].end - this.vmas[i].first;
			}
			return {first, nr: nrVmas, name, nrPages, parts};
		});
	}

	/**
	 * Extents in address order, as columns: pages (nr), state, first page, index of the first frame
	 * or -1, and mapping. "past" is the index of the frame that the pages were in, if it is another.
	 *
	 * @param {Columns} columns
	 */
	readExtents(columns) {
		this.nr = columns.nr || new Float64Array(0);
		this.state = columns.state;
		this.page = new Float64Array(this.nr.length);
		this.vma = new Uint32Array(this.nr.length);
		this.index = this.readFrames(columns.frame);
		this.past = this.readFrames(columns.past);
		let at = 0;
		this.vmas.forEach((vma, number) => {
			let page = vma.first;
			vma.firstExtent = at;
			for (let left = columns.per_vma[number]; left > 0; left--, at++) {
				this.page[at] = page += columns.gap[at];
				page += this.nr[at];
				this.vma[at] = number;
			}
			vma.endExtent = at;
		});
	}

	/* The index of each extent's first frame, or -1. Without a column no extent has a frame. */
	readFrames(column) {
		const found = new Float64Array(this.nr.length).fill(-1);
		let next = 0;
		for (let at = 0; column && at < found.length; at++) {
			const step = column[at] - 1;
			if (step < 0)
				continue;
			found[at] = next + (step % 2 ? -(step + 1) / 2 : step / 2);
			next = found[at] + this.nr[at];
		}
		return found;
	}

	/* The offset of a page in its band, in pages. */
	offset(page, vma) {
		return this.bandStart[vma] + page - this.vmas[vma].first;
	}

	/*
	 * Pieces of extents in the order of their frames: the extents are split where a part of their
	 * band ends. The frames that pages were in before have pieces of their own.
	 */
	sortPieces() {
		const nrExtents = this.page.length;
		/* Each end of a part can split one extent. */
		const room = 2 * nrExtents + 2 * this.bands.reduce((sum, band) => sum + band.parts, 0);
		const index = new Float64Array(room), nrPages = new Float64Array(room);
		const extents = new Uint32Array(room), parts = new Uint8Array(room);
		const isPast = new Uint8Array(room);
		let nr = 0;
		const split = (i, first, past) => {
			const band = this.bands[this.bandOf[this.vma[i]]];
			const start = this.offset(this.page[i], this.vma[i]);
			for (let done = 0; done < this.nr[i]; nr++) {
				const part = Math.floor((start + done) * band.parts / band.nrPages);
				const end = Math.ceil((part + 1) * band.nrPages / band.parts) - start;
				index[nr] = first + done;
				nrPages[nr] = Math.min(end, this.nr[i]) - done;
				extents[nr] = i;
				parts[nr] = part;
				isPast[nr] = past;
				done += nrPages[nr];
			}
		};
		for (let i = 0; i < nrExtents; i++) {
			if (this.index[i] >= 0)
				split(i, this.index[i], 0);
			if (this.past[i] >= 0)
				split(i, this.past[i], 1);
		}
		/* Plain numbers sort many times faster than with a comparison function. */
		const width = 2 ** Math.ceil(Math.log2(nr + 1)), order = new Float64Array(nr);
		for (let i = 0; i < nr; i++)
			order[i] = index[i] * width + i;
		order.sort();
		this.pieceIndex = new Float64Array(nr);
		this.pieceNr = new Float64Array(nr);
		this.pieceEnd = new Float64Array(nr); /* the largest end so far: two pieces may have the same frame */
		this.pieceExtent = new Uint32Array(nr);
		this.piecePart = new Uint8Array(nr);
		this.piecePast = new Uint8Array(nr);
		this.pieceKind = new Uint8Array(nr);
		let furthest = 0;
		for (let at = 0; at < nr; at++) {
			const i = order[at] % width;
			this.pieceIndex[at] = index[i];
			this.pieceNr[at] = nrPages[i];
			this.pieceExtent[at] = extents[i];
			this.piecePart[at] = parts[i];
			this.piecePast[at] = isPast[i];
			this.pieceKind[at] = this.states[this.state[extents[i]]][isPast[i]];
			furthest = Math.max(furthest, index[i] + nrPages[i]);
			this.pieceEnd[at] = furthest;
		}
	}

	/* The page that is, or was, in a frame of a piece. */
	pageOfPiece(piece, index) {
		const extent = this.pieceExtent[piece];
		return this.page[extent] + index - (this.piecePast[piece] ? this.past : this.index)[extent];
	}

	/* Call use(kind) for each kind that a piece has, from the last to the first. */
	eachKind(use) {
		const there = new Set(this.pieceKind);
		for (let kind = this.kinds.length - 1; kind >= 0; kind--)
			if (there.has(kind))
				use(kind);
	}

	/*
	 * All frames by kind. The pieces replace what the runs of the file say. Of several kinds of one
	 * frame the first counts.
	 */
	readRuns(columns) {
		const nr = columns.run_nr ? columns.run_nr.length : 0;
		this.runStart = new Float64Array(nr + 1);
		for (let i = 0; i < nr; i++)
			this.runStart[i + 1] = this.runStart[i] + columns.run_nr[i];
		this.runKind = Uint8Array.from(columns.run_kind || []);
		this.eachKind((kind) => this.layOver(kind));
	}

	/* Give the frames of all pieces of a kind this kind. */
	layOver(ofKind) {
		const {runStart, runKind} = this;
		const room = runKind.length + 2 * this.pieceIndex.length + 2;
		const starts = new Float64Array(room), kinds = new Uint8Array(room);
		let nr = 0, at = 0, run = 0;
		const put = (kind) => {
			if (nr && kinds[nr - 1] === kind)
				return;
			starts[nr] = at;
			kinds[nr++] = kind;
		};
		const goTo = (index) => {
			while (at < index) {
				while (runStart[run + 1] <= at)
					run++;
				put(runKind[run]);
				at = Math.min(index, runStart[run + 1]);
			}
		};
		for (let i = 0; i < this.pieceIndex.length; i++) {
			if (this.pieceKind[i] !== ofKind)
				continue;
			goTo(this.pieceIndex[i]);
			const last = this.pieceIndex[i] + this.pieceNr[i];
			if (last <= at)
				continue;
			put(ofKind);
			at = last;
		}
		goTo(this.nrFrames);
		this.runStart = starts.slice(0, nr + 1);
		this.runStart[nr] = this.nrFrames;
		this.runKind = kinds.slice(0, nr);
	}

	/* Call use(index, nr, kind) for the runs in first .. end. */
	eachRun(first, end, use) {
		let run = firstWhere(0, this.runKind.length, (i) => this.runStart[i + 1] > first);
		for (let at = first; at < end; run++) {
			const next = Math.min(end, this.runStart[run + 1]);
			use(at, next - at, this.runKind[run]);
			at = next;
		}
	}

	/* The first piece that ends after a frame. */
	pieceAfter(index) {
		return firstWhere(0, this.pieceIndex.length, (i) => this.pieceEnd[i] > index);
	}

	/* Call use(piece, index, nr) for the pieces in first .. end. */
	eachPiece(first, end, use) {
		const nr = this.pieceIndex.length;
		for (let i = this.pieceAfter(first); i < nr && this.pieceIndex[i] < end; i++) {
			const low = Math.max(first, this.pieceIndex[i]);
			const high = Math.min(end, this.pieceIndex[i] + this.pieceNr[i]);
			if (low < high)
				use(i, low, high - low);
		}
	}

	/* Call use(first index, end, first frame) for the RAM in frames first .. end. */
	eachRam(first, end, use) {
		for (let i = firstWhere(0, this.ram.length, (j) => this.ram[j][1] > first);
			i < this.ram.length && this.ram[i][0] < end; i++) {
			const low = Math.max(first, this.ram[i][0]), high = Math.min(end, this.ram[i][1]);
			const base = this.bases[i] - this.ram[i][0];
			use(low + base, high + base, low);
		}
	}

	/* The mapping of a page, or -1. */
	findVma(page) {
		const at = firstWhere(0, this.vmas.length, (i) => this.vmas[i].end > page);
		return at < this.vmas.length && this.vmas[at].first <= page ? at : -1;
	}

	/* The extent of a page, or -1. */
	findExtent(page, vma) {
		const {firstExtent, endExtent} = this.vmas[vma];
		const at = firstWhere(firstExtent, endExtent, (i) => this.page[i] + this.nr[i] > page);
		return at < endExtent && this.page[at] <= page ? at : -1;
	}
}
