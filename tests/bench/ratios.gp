# SPDX-License-Identifier: MIT
# ratios.gp - owns the picture: kslab's time against the best peer, test by test; below 1 is faster.
# gnuplot -e "data='ratios.txt'; picture='ratios.svg'" ratios.gp
set terminal svg size 1100,480 font "sans-serif,11" background "white"
set output picture
set logscale y 2
set yrange [0.125:8.5]
set ytics (0.125, 0.25, 0.5, 0.7, 1, 2, 4, 8)
set grid ytics lc rgb "#dddddd"
set xtics rotate by -60 scale 0
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9 noborder
set key top left
set ylabel "time / time of the fastest peer"
set arrow from graph 0, first 1 to graph 1, first 1 nohead lc rgb "#333333" lw 1.5 front
plot data using 2:xtic(1) title "kslab" lc rgb "#2b6cb0", \
	data using 3 title "kslab, safe in interrupts and NMIs" lc rgb "#a0c4e8"
