/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the page knows. pack.py writes it: a JSON header behind its length, then columns of numbers
 * in planes: the lowest byte of all, then the next byte of all, and so on.
 *
 * Frames are numbered without the holes of RAM ("index"), pages by their address divided by the
 * page size ("page"): both fit into the 53 bits that a number here has.
 */
"use strict";

async function unpack(base64) {
	const text = atob(base64);
	const packed = new Uint8Array(text.length);
	for (let i = 0; i < packed.length; i++)
		packed[i] = text.charCodeAt(i);
	const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
	const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
	const length = new DataView(bytes.buffer).getUint32(0, true);
	const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
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

/* The first i in low .. high of which test(i) holds; high if there is none. */
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
		Object.assign(this, header);
		this.pageSize = header.page_size;
		this.ram ||= [];
		this.vmas ||= [];
		this.bands ||= [];
		this.states ||= [];
		this.isDiff = this.kinds.some((kind) => kind[4]);
		this.bases = [];
		this.nrFrames = 0;
		for (const [first, end] of this.ram) {
			this.bases.push(this.nrFrames);
			this.nrFrames += end - first;
		}
		this.vmas = this.vmas.map(([start, end, perms, offset, path]) => {
			const first = this.pageOf(BigInt("0x" + start));
			const last = this.pageOf(BigInt("0x" + end));
			return {first, end: last, perms, offset, path, name: path || "anonymous"};
		});
		if (columns.nr)
			this.readExtents(columns);
		this.sortPieces();
		if (columns.run_nr)
			this.readRuns(columns);
	}

	pageOf(address) {
		return Number(address / BigInt(this.pageSize));
	}

	/* Number of a page or frame, and an offset in it, as an address. */
	address(page, offset = 0) {
		return "0x" + (BigInt(page) * BigInt(this.pageSize) + BigInt(offset)).toString(16);
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

	/*
	 * Extents: page, nr, index (-1 without a frame), state and vma of each, in address order; and
	 * past, the index of the frame that they were in, if that is another.
	 */
	readExtents(columns) {
		const nr = columns.nr.length;
		this.nr = columns.nr;
		this.state = columns.state;
		this.page = new Float64Array(nr);
		this.index = this.readFrames(columns.frame);
		this.past = this.readFrames(columns.past);
		this.vma = new Uint32Array(nr);
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
		this.bandOf = new Uint16Array(this.vmas.length);
		this.bandStart = new Float64Array(this.vmas.length);
		this.bands = this.bands.map(([first, nrVmas, name], number) => {
			let nrPages = 0;
			for (let i = first; i < first + nrVmas; i++) {
				this.bandOf[i] = number;
				this.bandStart[i] = nrPages;
				nrPages += this.vmas[i].end - this.vmas[i].first;
			}
			return {first, nr: nrVmas, name, nrPages, parts: this.layout.parts[number]};
		});
	}

	/* The index of each extent's first frame, or -1; without a column none has one. */
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

	/* Where in its band a page is, in pages. */
	offset(page, vma) {
		return this.bandStart[vma] + page - this.vmas[vma].first;
	}

	/*
	 * Extents with frames, cut where a part of their band ends, in the order of their frames; and
	 * the same of the frames that they were in.
	 */
	sortPieces() {
		const nrExtents = this.page ? this.page.length : 0;
		/* Each end of a part can cut one extent. */
		const room = 2 * nrExtents + 2 * this.bands.reduce((sum, band) => sum + band.parts, 0);
		const index = new Float64Array(room), nrPages = new Float64Array(room);
		const extents = new Uint32Array(room), parts = new Uint8Array(room);
		const isPast = new Uint8Array(room);
		let nr = 0;
		const cut = (i, first, past) => {
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
				cut(i, this.index[i], 0);
			if (this.past[i] >= 0)
				cut(i, this.past[i], 1);
		}
		/* Numbers sort many times faster by themselves than by a function. */
		const width = 2 ** Math.ceil(Math.log2(nr + 1)), order = new Float64Array(nr);
		for (let i = 0; i < nr; i++)
			order[i] = index[i] * width + i;
		order.sort();
		this.pieceIndex = new Float64Array(nr);
		this.pieceNr = new Float64Array(nr);
		this.pieceEnd = new Float64Array(nr); /* the furthest so far: frames may be there twice */
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

	/* Call use(kind) for each kind that pieces are of, the last first. */
	eachKind(use) {
		const there = new Set(this.pieceKind);
		for (let kind = this.kinds.length - 1; kind >= 0; kind--)
			if (there.has(kind))
				use(kind);
	}

	/* All frames by kind: what the file says, and over it pages; of several the first kind counts. */
	readRuns(columns) {
		const nr = columns.run_nr.length;
		this.runStart = new Float64Array(nr + 1);
		for (let i = 0; i < nr; i++)
			this.runStart[i + 1] = this.runStart[i] + columns.run_nr[i];
		this.runKind = Uint8Array.from(columns.run_kind);
		this.eachKind((kind) => this.layOver(kind));
	}

	/* Have the frames of one kind's pieces be of that kind. */
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

	/* Call use(index, nr, kind) for the runs within first .. end. */
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

	/* Call use(piece, index, nr) for the pieces within first .. end. */
	eachPiece(first, end, use) {
		const nr = this.pieceIndex.length;
		for (let i = this.pieceAfter(first); i < nr && this.pieceIndex[i] < end; i++) {
			const low = Math.max(first, this.pieceIndex[i]);
			const high = Math.min(end, this.pieceIndex[i] + this.pieceNr[i]);
			if (low < high)
				use(i, low, high - low);
		}
	}

	/* Call use(first index, end, first frame) for the RAM within frames first .. end. */
	eachRam(first, end, use) {
		for (let i = firstWhere(0, this.ram.length, (j) => this.ram[j][1] > first);
			i < this.ram.length && this.ram[i][0] < end; i++) {
			const low = Math.max(first, this.ram[i][0]), high = Math.min(end, this.ram[i][1]);
			const base = this.bases[i] - this.ram[i][0];
			use(low + base, high + base, low);
		}
	}

	findVma(page) {
		const at = firstWhere(0, this.vmas.length, (i) => this.vmas[i].end > page);
		return at < this.vmas.length && this.vmas[at].first <= page ? at : -1;
	}

	/* The extent that a page is in, or -1. */
	findExtent(page, vma) {
		const {firstExtent, endExtent} = this.vmas[vma];
		const at = firstWhere(firstExtent, endExtent, (i) => this.page[i] + this.nr[i] > page);
		return at < endExtent && this.page[at] <= page ? at : -1;
	}
}
