"""From image bytes to pixels and back. Calls go one way, downwards in this list:

image_views     a packed JPEG -> the uint8 square that an encoder takes (the loader, prediction)
packed_form     a raw text and image -> what goes into a shard (packing, prediction)
posted_images   bytes of any posted image -> its pixels and what its header says
cut_jpegs       whether a JPEG ends before its last row
png_texts       a PNG without its texts
file_kinds      what a file is, by its first bytes: for messages
limits          how large a text or an image may be
pixels          pixels -> pixels: turn upright, cut out the centre square, resize
"""
