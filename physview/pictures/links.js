/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bundles pages into connectors, more coarsely until there are few enough, as bands.py does. */

const MAX_ROWS_SEEN = 4096; /* more than any screen has */

class Bundles {
	/** @param {Model} model */
	constructor(model) {
		this.model = model;
	}

	/* Bundle the pages that lie in the rows that are seen: by band, part, row and kind. */
	bundle(rows) {
		const {model} = this, {parts: finest, steps, most} = this.model.layout.links;
		const {pieceIndex, pieceNr, pieceExtent, piecePart, pieceKind, vma, bandOf} = model;
		const nrKinds = model.kinds.length, nrPieces = pieceIndex.length;
		/** @type {Map<number, number>} */
		const sums = new Map();
		rows.forEach((row, number) => {
			const here = new Float64Array(model.bands.length * finest * nrKinds);
			model.eachRam(row.first, row.first + row.nr, (first, end) => {
				for (let i = model.pieceAfter(first); i < nrPieces && pieceIndex[i] < end; i++) {
					const nr = Math.min(end, pieceIndex[i] + pieceNr[i]) - Math.max(first, pieceIndex[i]);
					const place = bandOf[vma[pieceExtent[i]]] * finest + piecePart[i];
					if (nr > 0)
						here[place * nrKinds + pieceKind[i]] += nr;
				}
			});
			here.forEach((nr, key) => nr && sums.set(number * here.length + key, nr));
		});
		let links = [], step = steps[0];
		for (step of steps) {
			links = this.coarsen(sums, ...step);
			if (links.length <= most)
				break;
		}
		return {links, nrParts: step[0], nrRows: step[1]};
	}

	/* The connectors at a step, by band, part, row and kind. */
	coarsen(sums, nrParts, nrRows) {
		const {model} = this, {parts: finest} = this.model.layout.links, nrKinds = model.kinds.length;
		/** @type {Map<number, number>} */
		const byKind = new Map();
		for (const [key, nr] of sums) {
			const kind = key % nrKinds, rest = Math.floor(key / nrKinds);
			const band = Math.floor(rest / finest) % model.bands.length;
			const {parts} = model.bands[band];
			const part = Math.floor(rest % finest * Math.min(nrParts, parts) / parts);
			const row = Math.floor(rest / finest / model.bands.length / nrRows) * nrRows;
			const place = ((band * finest + part) * MAX_ROWS_SEEN + row) * nrKinds + kind;
			byKind.set(place, (byKind.get(place) || 0) + nr);
		}
		/* In a difference each kind has connectors of its own; else the kind of most pages counts. */
		const links = [];
		let before = -1;
		for (const place of Float64Array.from(byKind.keys()).sort()) {
			const nr = byKind.get(place), kind = place % nrKinds, where = Math.floor(place / nrKinds);
			const last = links[links.length - 1];
			if (!model.isDiff && where === before) {
				last.nr += nr;
				if (nr > last.most)
					[last.most, last.kind] = [nr, kind];
				continue;
			}
			before = where;
			const start = Math.floor(where / MAX_ROWS_SEEN);
			links.push({band: Math.floor(start / finest), part: start % finest,
				row: where % MAX_ROWS_SEEN, kind, nr, most: nr});
		}
		return links;
	}
}
