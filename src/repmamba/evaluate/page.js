document.querySelectorAll('.shown').forEach(function (shown) {
  var pictures = shown.querySelectorAll('.pictures img');
  var sides = shown.querySelectorAll('.slider div img');
  var bar = shown.querySelector('.slider input');
  bar.addEventListener('input', function () {
    bar.parentElement.style.setProperty('--at', bar.value + '%');
  });
  shown.querySelectorAll('.slider select').forEach(function (choice, side) {
    function show() { sides[side].src = pictures[choice.value].src; }
    choice.addEventListener('change', show);
    show();
  });
});
